"""The Envoys of a node: its own, and one for each sidecar endpoint.

An Envoy is started with the first redirect that needs it: where policies stop at L4, none
runs.  From then on it is kept, because a policy that comes back should not have to wait.
They outlive the agent (node/proxy): the next one takes them over, those that have no
endpoint any more are ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from node.agent.config import AgentConfig
from node.agent.endpoints import NodeEndpoint
from node.errors import NodeError
from node.proxy.ending import stop
from node.proxy.plan import ProxyConfig
from node.proxy.status import ProxyEvent, ProxyStatus
from node.proxy.supervisor import Proxy
from xds.ads.bootstrap import NodeBootstrap

NODE = 0
"""The number of the node's own Envoy; a sidecar has its endpoint's."""

log = logging.getLogger(__name__)

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}


class Proxies:
    """Envoys by number. Safe for threads.

    on_event: told what happens to them, from threads of theirs.
    """

    def __init__(
        self, config: AgentConfig, on_event: Callable[[int, ProxyEvent], None] | None = None
    ) -> None:
        self._config = config
        self._on_event = on_event or _log
        self._lock = threading.Lock()
        self._proxies: dict[int, Proxy] = {}
        self._ending: list[threading.Thread] = []
        self._wanted: set[int] = set()
        self._problems: dict[int, str] = {}

    @property
    def enabled(self) -> bool:
        """Whether Envoys are ours to start."""
        return self._config.envoy != "none"

    def node_id(self, number: int) -> str:
        """What an Envoy calls itself."""
        name = self._config.node_name
        return name if number == NODE else f"{name}/endpoint-{number}"

    def settle(self, needed: Mapping[int, bool], sidecars: Mapping[int, NodeEndpoint]) -> None:
        """Have the Envoys that are needed.

        needed: by number, whether a redirect needs it now; those that are not named have
        nothing to judge any more. sidecars: the endpoints that have their own. Raises
        nothing; what cannot be done is in `problems`, and tried again by the next call.
        """
        if not self.enabled:
            return
        with self._lock:
            for number in [n for n in self._proxies if n != NODE and n not in sidecars]:
                self._end(number)
            for number, now in needed.items():
                proxy = self._proxies.get(number)
                if proxy is not None and proxy.config.netns != _netns(sidecars.get(number)):
                    # The same namespace at another path: it is taken over under that.
                    self._proxies.pop(number).close()
                    proxy = None
                # One that an agent before us has left is taken over, needed or not.
                if proxy is None and (now or folder(self._config.state_dir, number).is_dir()):
                    proxy = self._open(number, sidecars.get(number))
                if proxy is not None and now:
                    self._wanted.add(number)
                    proxy.ensure()

    def end_others(self, sidecars: Mapping[int, NodeEndpoint]) -> None:
        """End sidecars of endpoints that went while no agent ran."""
        if not self.enabled:
            return
        for number in known(self._config.state_dir):
            if number != NODE and number not in sidecars:
                self._end(number)

    def statuses(self) -> dict[int, ProxyStatus]:
        """How it is with each."""
        with self._lock:
            return {number: proxy.status for number, proxy in sorted(self._proxies.items())}

    def problems(self) -> Mapping[int, str]:
        """Why one that is needed cannot be had at all."""
        return dict(self._problems)

    def wanted(self) -> list[int]:
        """Those that are needed."""
        return sorted(self._wanted)

    def reload(self) -> int:
        """Have a new generation of each take over; how many there are."""
        with self._lock:
            for proxy in self._proxies.values():
                proxy.reload()
            return len(self._proxies)

    def close(self) -> None:
        """Let go of them: they go on."""
        with self._lock:
            for proxy in self._proxies.values():
                proxy.close()
            self._proxies.clear()
        for thread in self._ending:
            thread.join()

    def _open(self, number: int, endpoint: NodeEndpoint | None) -> Proxy | None:
        config = self._config
        try:
            made = Proxy(
                ProxyConfig(
                    folder=folder(config.state_dir, number),
                    run_dir=run_folder(config.run_dir, number),
                    bootstrap=NodeBootstrap(
                        self.node_id(number),
                        config.xds_path,
                        config.run_dir / "admin.sock",
                        max_heap=config.envoy_max_heap << 20,
                        sidecar=number != NODE,
                    ),
                    binary=None if config.envoy == "auto" else Path(config.envoy),
                    netns=_netns(endpoint),
                    concurrency=config.envoy_concurrency,
                    drain_time=config.envoy_drain_time,
                    parent_shutdown_time=config.envoy_parent_shutdown_time,
                ),
                lambda event: self._on_event(number, event),
            )
        except NodeError as error:
            if self._problems.get(number) != str(error):
                log.error("%s: %s", name(number), error)
            self._problems[number] = str(error)
            return None
        self._problems.pop(number, None)
        self._proxies[number] = made
        return made

    def _end(self, number: int) -> None:
        self._wanted.discard(number)
        self._problems.pop(number, None)
        proxy = self._proxies.pop(number, None)
        if proxy is not None:
            # It takes its time to end, and nobody has to wait for that.
            thread = threading.Thread(target=proxy.stop, name=f"end-envoy-{number}", daemon=True)
            self._ending = [thread, *(t for t in self._ending if t.is_alive())]
            thread.start()
        else:
            end(self._config.state_dir, self._config.run_dir, number)


def name(number: int) -> str:
    """What people call one."""
    return "Envoy" if number == NODE else f"the Envoy of endpoint {number}"


def folder(state_dir: Path, number: int) -> Path:
    """Where an Envoy's state and log are."""
    return state_dir / "envoy" / ("node" if number == NODE else str(number))


def run_folder(run_dir: Path, number: int) -> Path:
    """Where an Envoy's sockets are."""
    return run_dir / ("envoy" if number == NODE else f"envoy-{number}")


def known(state_dir: Path) -> list[int]:
    """The numbers of the Envoys that there is something of on the disk."""
    try:
        names = [path.name for path in (state_dir / "envoy").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(NODE if item == "node" else int(item) for item in names if _is_ours(item))


def end(state_dir: Path, run_dir: Path, number: int) -> list[int]:
    """End an Envoy that no agent looks after; the processes. Raises SetupError if one does."""
    return stop(folder(state_dir, number), run_folder(run_dir, number))


def _netns(endpoint: NodeEndpoint | None) -> Path | None:
    if endpoint is None or endpoint.attachment is None:
        return None
    return Path(endpoint.attachment.netns)


def _is_ours(item: str) -> bool:
    return item == "node" or (item.isascii() and item.isdigit())


def _log(number: int, event: ProxyEvent) -> None:
    log.log(_LEVELS.get(event.role, logging.INFO), "%s: %s", name(number), event.message)
