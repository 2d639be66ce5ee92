"""A container runtime's part of CNI: it executes the plugins of a network's configuration.

As the specification's section 3 has it: ADD in order, each with the result of the one before;
CHECK and DEL with the result of ADD, DEL in reverse.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demos.namespaces import Namespace
from demos.servers.maven import Missing

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's package containernetworking-plugins has them."""


class Failed(Exception):
    """A plugin failed: what it printed."""

    def __init__(self, plugin: str, error: Mapping[str, Any]) -> None:
        super().__init__(f"{plugin}: {error}")
        self.plugin, self.error = plugin, error


@dataclass
class Runtime:
    """Runs the plugins of `network` in the namespace of `node`. Raises Missing without them."""

    node: Namespace
    network: dict[str, Any]
    results: dict[tuple[str, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ours = Path(sys.executable).parent
        self.path = os.pathsep.join(map(str, (PLUGINS, "/opt/cni/bin", ours)))
        for plugin in self.network["plugins"]:
            if shutil.which(plugin["type"], path=self.path) is None:
                raise Missing(
                    f"the CNI plugin {plugin['type']} is not installed "
                    "(Debian: apt install containernetworking-plugins)"
                )

    def add(
        self,
        container: str,
        netns: Path,
        interface: str = "eth0",
        *,
        args: str = "",
        **capabilities: Any,
    ) -> Any:
        """The result of the last plugin, which is kept. Raises Failed."""
        result = None
        for plugin in self.network["plugins"]:
            given = self._environment("ADD", container, netns, interface, args)
            result = self._call(plugin, given, capabilities, result)
        self.results[container, interface] = result
        return result

    def check(self, container: str, netns: Path, interface: str = "eth0") -> None:
        for plugin in self.network["plugins"]:
            given = self._environment("CHECK", container, netns, interface, "")
            self._call(plugin, given, {}, self.results[container, interface])

    def delete(self, container: str, netns: Path | str, interface: str = "eth0") -> None:
        result = self.results.get((container, interface))
        for plugin in reversed(self.network["plugins"]):
            given = self._environment("DEL", container, netns, interface, "")
            self._call(plugin, given, {}, result)
        self.results.pop((container, interface), None)

    def alone(self, command: str, plugin: str = "proxylib-cni", **config: Any) -> Any:
        """A command that is not about one container: GC, STATUS."""
        (found,) = (p for p in self.network["plugins"] if p["type"] == plugin)
        environment = {"CNI_COMMAND": command, "CNI_PATH": self.path}
        return self._call({**found, **config}, environment, {}, None)

    def _environment(
        self, command: str, container: str, netns: Path | str, interface: str, args: str
    ) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": interface,
            "CNI_ARGS": args,
            "CNI_PATH": self.path,
        }

    def _call(
        self,
        plugin: Mapping[str, Any],
        environment: Mapping[str, str],
        capabilities: Mapping[str, Any],
        result: Any,
    ) -> Any:
        kept = {
            key: capabilities[key] for key in plugin.get("capabilities", ()) if key in capabilities
        }
        config = {
            "cniVersion": self.network["cniVersion"],
            "name": self.network["name"],
            **{key: value for key, value in plugin.items() if key != "capabilities"},
            **({"runtimeConfig": kept} if kept else {}),
            **({"prevResult": result} if result is not None else {}),
        }
        executable = shutil.which(plugin["type"], path=self.path)
        assert executable is not None
        done = self.node.run(
            executable, input=json.dumps(config), env={**environment, "PATH": os.environ["PATH"]}
        )
        answer = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode:
            raise Failed(plugin["type"], answer or {"msg": done.stderr})
        return answer
