"""What a namespace needs beside programs: packets for the proxy stay, and its links let them.

A packet that a program has marked for the proxy goes by table 2004 to this machine itself,
whatever its destination. Links must not refuse it for its source (`rp_filter`, `accept_local`),
and a node must forward. All functions work in the namespace of the thread that calls them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf.errors import BpfError
from bpf.memory import Namespace
from bpf.netlink import netlink
from bpf.schema import MARK_MASK, Mark

TABLE = 2004
PRIORITY = 9
"""Of the rule: after the table of the machine's own addresses (0), before all others."""

NODE = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    # Packets from outside for the proxy's sockets are forwarded to the endpoint, where they are
    # judged; the kernel drops what it forwards and has found a socket for already (IPv6, too).
    "net/ipv4/ip_early_demux": "0",
}
SIDECAR = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/lo/rp_filter": "0"}
LINK = {"net/ipv4/conf/{%d}/rp_filter": "0", "net/ipv4/conf/{%d}/accept_local": "1"}
"""Of each endpoint's interface; it is remembered by number, as names may change."""

_PROC = Path("/proc/sys")
_RTN_LOCAL = 2
_RTPROT_RA = 9
_SCOPE_HOST = 254


def add_rules() -> None:
    """The rule and the table, for IPv4 and (unless it is switched off) IPv6; idempotent."""
    with netlink(f"routing by mark to table {TABLE}") as route:
        (loopback,) = route.link_lookup(ifname="lo")
        route.link("set", index=loopback, state="up")
        for family in _usable_families():
            if not _rules(route, family):
                route.rule("add", family=family, **_rule())
            if not _routes(route, family):
                route.route("add", family=family, **_default(loopback))


def remove_rules() -> None:
    """Take them away; idempotent."""
    with netlink(f"routing by mark to table {TABLE}") as route:
        for family in _usable_families():
            for _ in range(_rules(route, family)):
                route.rule("del", family=family, **_rule())
            if _routes(route, family):
                (loopback,) = route.link_lookup(ifname="lo")
                route.route("del", family=family, **_default(loopback))


def lacking(sysctls: Mapping[str, str]) -> list[str]:
    """What is not (any more) as `add_rules` and `change` have made it, in words."""
    with netlink("routing rules") as route:
        found = [
            f"IPv{4 if family == socket.AF_INET else 6} {what} table {TABLE}"
            for family in _usable_families()
            for what, count in (("rule to", _rules), ("route in", _routes))
            if not count(route, family)
        ]
    return found + wrong(sysctls)


def has_any_rules() -> bool:
    """True if any of it is there."""
    with netlink("routing rules") as route:
        return any(_rules(route, f) or _routes(route, f) for f in _usable_families())


def _usable_families() -> list[socket.AddressFamily]:
    try:
        off = (_PROC / "net/ipv6/conf/lo/disable_ipv6").read_text().strip()
    except OSError:
        off = "1"  # a kernel without IPv6
    return [socket.AF_INET] if off != "0" else [socket.AF_INET, socket.AF_INET6]


def _rule() -> dict[str, int]:
    return {"priority": PRIORITY, "table": TABLE, "fwmark": Mark.TO_PROXY, "fwmask": MARK_MASK}


def _default(loopback: int) -> dict[str, Any]:
    return {
        "dst": "default",
        "oif": loopback,
        "table": TABLE,
        "type": _RTN_LOCAL,
        "scope": _SCOPE_HOST,
    }


def _rules(route: Any, family: int) -> int:
    wanted = {"FRA_PRIORITY": PRIORITY, "FRA_FWMARK": Mark.TO_PROXY, "FRA_FWMASK": MARK_MASK}
    wanted["FRA_TABLE"] = TABLE
    found = route.get_rules(family=family)
    return sum(all(one.get_attr(k) == v for k, v in wanted.items()) for one in found)


def _routes(route: Any, family: int) -> int:
    return sum(1 for one in route.get_routes(family=family, table=TABLE) if one["dst_len"] == 0)


def node_sysctls() -> dict[str, str]:
    """`NODE`, and before it: interfaces that have told the node its default route may go on.

    A kernel that forwards IPv6 else forgets what routers have advertised.
    """
    if socket.AF_INET6 not in _usable_families():
        return NODE
    with netlink("routes by router advertisement") as route:
        told = [
            one.get_attr("RTA_OIF")
            for one in route.get_routes(family=socket.AF_INET6)
            if one["proto"] == _RTPROT_RA and one["dst_len"] == 0
        ]
    return {f"net/ipv6/conf/{{{index}}}/accept_ra": "2" for index in told if index} | NODE


def change(names: dict[str, str], memory: Namespace, save: Callable[[], None]) -> None:
    """Set sysctls; what they were is remembered (once) before. Raises `BpfError`."""
    others = {name: value for name, value in _now(names).items() if value != names[name]}
    new = {name: value for name, value in others.items() if name not in memory.sysctls}
    if new:
        memory.sysctls.update(new)
        save()
    for name in others:
        _write(name, names[name])


def wrong(sysctls: Mapping[str, str]) -> list[str]:
    """Those that are otherwise now, as they are called under /proc/sys."""
    others = (name for name, value in _now(sysctls).items() if value != sysctls[name])
    return [str(path.relative_to(_PROC)) for name in others if (path := _path(name))]


def _now(names: Iterable[str]) -> dict[str, str]:
    """What sysctls are; without those that there are not."""
    now = {}
    for name in names:
        path = _path(name)
        with suppress(FileNotFoundError):
            if path is not None:
                now[name] = path.read_text().strip()
    return now


def link_sysctls(ifindex: int) -> dict[str, str]:
    """`LINK` for one interface."""
    return {name % ifindex: value for name, value in LINK.items()}


def restore(memory: Namespace, ifindex: int = 0) -> None:
    """Put sysctls back, those of one interface or all; what is gone needs nothing."""
    ours = {
        name: value
        for name, value in memory.sysctls.items()
        if not ifindex or f"{{{ifindex}}}" in name
    }
    # Setting `all` may set others along: each interface's own comes last.
    for name in sorted(ours, key=lambda name: "{" in name):
        _write(name, ours[name])
        del memory.sysctls[name]


def _path(name: str) -> Path | None:
    numbers = re.findall(r"\{(\d+)\}", name)
    try:
        for number in numbers:
            name = name.replace(f"{{{number}}}", socket.if_indextoname(int(number)))
    except OSError:
        return None
    return _PROC / name


def _write(name: str, value: str) -> None:
    path = _path(name)
    if path is None:
        return
    try:
        path.write_text(value)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BpfError(f"{path} cannot be set to {value}: {error.strerror}") from error
