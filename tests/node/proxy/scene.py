"""A control server with one redirect, and whatever Envoys a test has it serve."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from demos.stage import line_server
from node.address import Address
from node.envoy import find_envoy
from node.proxy.ending import stop
from node.proxy.plan import ProxyConfig
from node.proxy.status import ProxyEvent
from node.proxy.supervisor import Proxy
from xds.ads.bootstrap import NodeBootstrap
from xds.ads.clusters import Upstream
from xds.ads.resources import Direction, NodeConfig, Redirect, build
from xds.control import ControlServer

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: droids}}
spec:
  endpointSelector: {{matchLabels: {{app: droid}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules: {rules}
"""


@dataclass
class Scene:
    """folder: short enough for sockets. port: where the first redirect's listener is."""

    folder: Path
    server: Address
    port: int
    node: NodeConfig
    control: ControlServer
    stack: ExitStack
    events: list[ProxyEvent] = field(default_factory=list)

    def config(self, name: str = "envoy", **changes: Any) -> ProxyConfig:
        folder = self.folder / name
        self.stack.callback(stop, folder / "state", folder / "run", 2)
        settings: dict[str, Any] = {
            "bootstrap": NodeBootstrap("node", self.folder / "xds.sock", Path("unused")),
            "drain_time": 1,
            "parent_shutdown_time": 3,
            "concurrency": self.node.concurrency,
        }
        return ProxyConfig(folder / "state", folder / "run", **settings | changes)

    def proxy(self, config: ProxyConfig | None = None) -> Proxy:
        """It is let go at the end of the test, and then what it started is stopped."""
        made = Proxy(config or self.config(), self.events.append)
        self.stack.callback(made.close)
        return made

    def allow(self, rules: str = "{l7proto: r2d2, l7: [{cmd: HALT}]}") -> None:
        text = _POLICY.format(port=self.server.port, rules=rules)
        (self.folder / "policy.yaml").write_text(text)
        if self.control.server.revision:
            self.control.reload()

    def redirect(self, parser: str = "r2d2", port: int = 0, **more: Any) -> Redirect:
        return Redirect(
            parser,
            Direction.INGRESS,
            port or self.port,
            upstream="servers",
            destination=str(self.server),
            **more,
        )

    def publish(self, *redirects: Redirect) -> None:
        servers = Upstream("servers", ((HOST, self.server.port),))
        self.control.server.publish(build(self.node, redirects, [servers]))

    def told(self, kind: str) -> list[str]:
        return [event.message for event in list(self.events) if event.kind == kind]


@contextmanager
def scene(folder: Path, server: Address | None = None, **settings: Any) -> Iterator[Scene]:
    """Plays in the network namespace of this thread. server: behind the redirect; None has
    one for droids. settings: of NodeConfig."""
    with ExitStack() as stack:
        if server is None:
            server = stack.enter_context(line_server(Address(HOST, 0), lambda line: line))
        (folder / "endpoints.yaml").write_text(
            f"endpoints: [{{addresses: [{HOST}, '::1'], labels: {{app: droid}}}}]\n"
        )
        xds = folder / "xds.sock"
        settings = {
            "xds_path": xds,
            "access_log_path": folder / "log.sock",
            "node_id": "node",
            "hosts": (HOST,),
            "transparency": None,
            **settings,
        }
        node = NodeConfig(**settings)
        control = ControlServer(xds, [folder / "policy.yaml"], folder / "endpoints.yaml")
        made = Scene(folder, server, free_port(), node, control, stack)
        made.allow()
        made.publish(made.redirect())
        stack.enter_context(control)
        yield made


class Droid:
    """A connection through the proxy."""

    def __init__(self, port: int, host: str = HOST, timeout: float = 10) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._file = self._socket.makefile("rb")

    def ask(self, line: bytes = b"HALT") -> bytes:
        self._socket.sendall(line + b"\r\n")
        return self._file.readline().removesuffix(b"\r\n")

    def __enter__(self) -> Droid:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


class Traffic:
    """Requests without a pause. request: one of them; raises if it fails. `stop` tells how
    many were answered, and what was wrong with the others."""

    def __init__(self, request: Callable[[], None]) -> None:
        self._request = request
        self._stopping = threading.Event()
        self._answered = 0
        self._failures: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> tuple[int, list[str]]:
        self._stopping.set()
        self._thread.join()
        return self._answered, self._failures

    def _run(self) -> None:
        while not self._stopping.is_set() and len(self._failures) < 10:
            began = time.monotonic()
            try:
                self._request()
                self._answered += 1
            except (OSError, AssertionError, HTTPException) as error:
                # One that takes longer than an old generation may live is cut off by right.
                self._failures.append(f"{error!r} after {time.monotonic() - began:.3f} s")


def connecting(port: int, host: str = HOST) -> Callable[[], None]:
    """A request on a connection of its own."""

    def request() -> None:
        with Droid(port, host) as droid:
            answer = droid.ask()
            assert answer == b"HALT", answer

    return request


def script(path: Path, code: str) -> Path:
    """An Envoy that is a shell script, with the real one as $REAL; `--version` is its."""
    real = find_envoy()
    new = path.with_name(path.name + ".new")
    new.write_text(f'#!/bin/sh\nREAL={real}\n[ "$1" = --version ] && exec "$REAL" "$@"\n{code}\n')
    new.chmod(0o755)
    new.rename(path)
    return path


@contextmanager
def agent(node: Scene) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has started an Envoy, and that Envoy's number."""
    config = node.config()
    xds = node.folder / "xds.sock"
    command = [sys.executable, "-m", "tests.node.proxy.agent", config.folder.parent, xds]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
