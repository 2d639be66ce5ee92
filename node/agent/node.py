"""The parts of a running agent, for those that show or change them (the REST API)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from bpf.errors import BpfError
from node.agent.config import AgentConfig
from node.agent.decisions import Decisions
from node.agent.folder import PolicyFolder
from node.agent.links import NodeLinks
from node.agent.opening import own_addresses
from node.agent.redirects import NodeRedirects
from node.agent.repository import Repository
from node.monitor.watch import Watch
from xds.control import ControlServer


@dataclass(frozen=True, slots=True)
class Node:
    """One agent. folder: None without a policy directory."""

    config: AgentConfig
    repository: Repository
    control: ControlServer
    decisions: Decisions
    redirects: NodeRedirects
    links: NodeLinks
    monitor: Watch
    folder: PolicyFolder | None = None

    def tick(self) -> None:
        """What is to be done about twice a second. Raises ConfigError if no port is left."""
        self.links.tick()
        self.tell_own_addresses()
        self.monitor.tick()
        self.repository.resolve_redirects()

    def tell_own_addresses(self) -> None:
        """Tell parsers which addresses are the host's, as the programs know it."""
        if self.links.datapath.datapath is None:
            return
        with suppress(BpfError):  # The kernel does not say them now.
            own = own_addresses()
            if own != self.control.engine.own_addresses:
                self.repository.set_own_addresses(own)
