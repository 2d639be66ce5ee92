"""From the agent's settings to its data path: whether there can be one, and how it is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from bpf.errors import BpfError
from bpf.schema import Flags
from node.agent.acceleration import Acceleration
from node.agent.claim import claim_namespace
from node.agent.config import AgentConfig

if TYPE_CHECKING:
    from bpf.datapath import Datapath, DatapathConfig
    from bpf.sockmap import Sockmap


TRACES = {
    "none": Flags.TRACE | Flags.TRACE_TO | Flags.TRACE_FROM,
    "low": Flags.TRACE | Flags.TRACE_TO,
    "medium": Flags.TRACE,
    "maximum": Flags.NONE,
}
"""What the programs report of connections, by the setting monitor-aggregation."""


def unavailable(config: AgentConfig) -> str:
    """Why there cannot be a data path, if that is plain from the start; empty otherwise."""
    if config.datapath == "none":
        return "this agent has datapath: none"
    if config.upstream is not None:
        return "this agent's redirects lead to an upstream; programs need transparent ones"
    if os.geteuid() != 0:
        return "the programs of endpoints with an interface need root: run the agent as root"
    return ""


def opener(config: AgentConfig, stack: ExitStack) -> Callable[[], Datapath]:
    """What opens the data path, for this agent alone as long as `stack` lasts."""

    def open_() -> Datapath:
        # Not before it is needed: most agents of tests and demos have none.
        from bpf.datapath import Datapath

        with ExitStack() as claimed:
            claimed.enter_context(claim_namespace())
            opened = Datapath.open(datapath_config(config))
            stack.push(claimed.pop_all())
        return opened

    return open_


def acceleration(config: AgentConfig) -> Acceleration:
    """Who takes part in acceleration on this node."""
    disabled = unavailable(config)
    if config.sockmap == "none":
        disabled = "this agent has sockmap: none"

    def open_() -> Sockmap:
        from bpf.sockmap import Sockmap, SockmapConfig

        return Sockmap.open(SockmapConfig(config.bpf_root, config.bpf_cache_path))

    def left_over() -> bool:
        from bpf.sockmap import folders

        return bool(folders(config.bpf_root))

    return Acceleration(open_, left_over, disabled)


def datapath_config(config: AgentConfig) -> DatapathConfig:
    """The settings that are the data path's."""
    from bpf.datapath import DatapathConfig

    return DatapathConfig(
        root=config.bpf_root,
        cache=config.bpf_cache_path,
        state=config.state_dir / "bpf",
        sizes={"conntrack": config.bpf_ct_global_max, "ipcache": config.bpf_ipcache_max},
        policy_max=config.bpf_policy_map_max,
    )


HEARD = frozenset({"fe80::/10", "ff00::/8", "224.0.0.0/4", "255.255.255.255"})
"""What goes no further than to the node, who has it or not; a rule can name a group of these."""


def node_addresses(config: AgentConfig) -> frozenset[str] | None:
    """The node's addresses, which no endpoint can have: `own_addresses`, and node-ip.

    None where there can be no data path: listeners there are the node's own, and endpoints
    may be so too. Raises BpfError as `own_addresses`.
    """
    if unavailable(config):
        return None
    return own_addresses() | {config.node_ip}


def own_addresses() -> frozenset[str]:
    """What the caller's network namespace listens to, but for loopback's addresses.

    Its own addresses; those that stand for all of a subnet (IPv4 broadcast) or for any router of
    one (RFC 4291, 2.6.1); and `HEARD`. Raises BpfError if the kernel does not say them.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            found = {
                # Where there is a peer, IFA_ADDRESS is the peer's.
                (told.get_attr("IFA_LOCAL") or told.get_attr("IFA_ADDRESS"), told["prefixlen"])
                for told in route.get_addr()
            }
    except (NetlinkError, OSError) as error:
        raise BpfError(f"the node's own addresses are not known: {error}") from error
    own = {address for address, _ in found if address is not None}
    for address, length in found:
        if address is not None:
            subnet = ip_interface(f"{address}/{length}").network
            if subnet.num_addresses > 2:
                own.add(str(subnet.network_address))
                if subnet.version == 4:
                    own.add(str(subnet.broadcast_address))
    return HEARD | {address for address in own if not ip_address(address).is_loopback}
