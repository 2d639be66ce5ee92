"""Events of the eBPF programs, as the monitor shows them: drops, traces, policy verdicts."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from node.monitor.ends import Ends
from node.monitor.hub import Hub

if TYPE_CHECKING:
    from bpf.events import Event

_TYPES = {1: "drop", 2: "trace", 3: "policy-verdict"}
"""bpf.schema.EventType; its numbers, so that an agent without programs loads nothing of bpf."""

_AUDIT, _PROXIED = 4, 8
"""bpf.schema.EventFlags."""

_ACTIONS = {0: "deny", 1: "allow", 2: "redirect", 3: "deny"}
"""xds.mapstate.Verdict in Cilium's words: what no entry is about is denied."""

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
_PORTS = ("tcp", "udp", "sctp")
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
"""From the lowest bit up."""

_ICMP = {0: "EchoReply", 3: "DestinationUnreachable", 8: "EchoRequest", 11: "TimeExceeded"}
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
}


def publish(hub: Hub, ends: Ends, events: Iterable[Event]) -> None:
    """Give events to those who want them."""
    if hub.subscribers:
        for event in events:
            _publish(hub, ends, event)


def _publish(hub: Hub, ends: Ends, event: Event) -> None:
    # Its own end is known by the program that saw the packet, whatever address that claims.
    source = event.endpoint if not event.ingress else ends.endpoint(event.source)
    destination = event.endpoint if event.ingress else ends.endpoint(event.destination)
    kind = _TYPES[event.type]
    hub.publish(kind, source, destination, lambda: _record(ends, event, kind, source, destination))


def _record(ends: Ends, event: Event, kind: str, source: int, destination: int) -> dict[str, Any]:
    protocol = _PROTOCOLS.get(event.protocol, str(event.protocol))
    addresses = (
        _address(event.source, event.source_port, protocol),
        _address(event.destination, event.destination_port, protocol),
    )
    return {
        "type": kind,
        "time": _clock(event.time),
        **_told(event, kind),
        "direction": "ingress" if event.ingress else "egress",
        "endpoint": event.endpoint,
        "ifindex": event.ifindex,
        "source": ends.end(addresses[0], source, event.source_identity or ends.identity(source)),
        "destination": ends.end(
            addresses[1], destination, event.destination_identity or ends.identity(destination)
        ),
        "protocol": protocol,
        "flow": f"{_flow(protocol, addresses):#x}",
        "length": event.length,
        "summary": f"{addresses[0]} -> {addresses[1]} {_said(event, protocol)}",
    }


def _told(event: Event, kind: str) -> Mapping[str, Any]:
    """What only this type of event tells."""
    if kind == "drop":
        return {"reason": event.text, "code": event.reason}
    audit = bool(event.flags & _AUDIT)
    if kind == "trace":
        return {
            "state": event.text,
            "audit": audit,
            "proxy_port": event.proxy_port if event.flags & _PROXIED else 0,
        }
    action = "audit" if audit else _ACTIONS.get(event.verdict, str(event.verdict))
    return {"action": action, "proxy_port": event.proxy_port if action == "redirect" else 0}


def _address(host: str, port: int, protocol: str) -> str:
    if protocol not in _PORTS:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _said(event: Event, protocol: str) -> str:
    """``tcp SYN, ACK``, ``udp``, ``icmp EchoRequest``."""
    if protocol == "tcp":
        flags = [name for n, name in enumerate(_TCP_FLAGS) if event.tcp_flags >> n & 1]
        return f"tcp {', '.join(flags)}".rstrip()
    names = {"icmp": _ICMP, "icmp6": _ICMP6}.get(protocol)
    if names is None:
        return protocol
    return f"{protocol} {names.get(event.destination_port, event.destination_port)}"


def _flow(protocol: str, addresses: tuple[str, str]) -> int:
    """The same number for both directions of a connection, to search for."""
    return zlib.crc32(" ".join((protocol, *sorted(addresses))).encode())


def _clock(monotonic: float) -> str:
    """Seconds of the monotonic clock as ISO 8601, UTC."""
    moment = datetime.fromtimestamp(time.time() - time.monotonic() + monotonic, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
