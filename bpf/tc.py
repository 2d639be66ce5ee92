"""The programs' places: filters of the clsact qdisc, in direct action, by pyroute2.

Priority and handle are fixed: replacing a filter is one step of the kernel, in which no packet
goes by unjudged. A filter of ours is known by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from bpf.netlink import InterfaceGone, netlink
from bpf.netns import within

PRIORITY = 1
"""Before everything else: whoever lets a packet pass before us would pass it unjudged."""

HANDLE = 1
NAME = "proxylib/"
"""How the names of our filters begin."""

_ETH_P_ALL = 0x0003


class Hook(IntEnum):
    """The two ends of clsact: a packet comes in from the interface, or goes out by it."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of ours. name: as `attach` was told."""

    ifindex: int
    hook: Hook
    name: str


def attach(ifindex: int, hook: Hook, fd: int, name: str, netns: str = "") -> None:
    """Have the program `fd` judge what passes the hook; in place of ours that is there.

    name: without `NAME`. Raises `InterfaceGone`, `NamespaceGone` and `BpfError`.
    """

    def action() -> None:
        with netlink(f"a program cannot be attached to interface {ifindex}") as route:
            if not _has_clsact(route, ifindex):
                route.tc("add", "clsact", ifindex)
            route.tc(
                "replace-filter",
                "bpf",
                ifindex,
                HANDLE,
                fd=fd,
                name=NAME + name,
                parent=int(hook),
                prio=PRIORITY,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )

    within(netns, action)


def detach(ifindex: int, netns: str = "") -> None:
    """Take our filters away, and clsact if nobody else's filter is left in it.

    An interface or a namespace that is gone took them along: no error.
    """

    def action() -> None:
        with netlink(f"programs cannot be detached from interface {ifindex}") as route:
            if not _has_clsact(route, ifindex):
                return
            for found in _filters(route, ifindex):
                route.tc(
                    "del-filter",
                    "bpf",
                    ifindex,
                    HANDLE,
                    parent=int(found.hook),
                    prio=PRIORITY,
                    protocol=_ETH_P_ALL,
                )
            if not any(_raw_filters(route, ifindex, hook) for hook in Hook):
                route.tc("del", "clsact", ifindex)

    try:
        within(netns, action)
    except InterfaceGone:
        return


def filters(ifindex: int = 0, netns: str = "") -> list[Filter]:
    """Our filters on an interface; 0: on every interface of the namespace."""

    def action() -> list[Filter]:
        with netlink("filters cannot be read") as route:
            if ifindex:
                return list(_filters(route, ifindex))
            with_clsact = {q["index"] for q in route.get_qdiscs() if _is_clsact(q)}
            return [f for index in sorted(with_clsact) for f in _filters(route, index)]

    return within(netns, action)


def _is_clsact(qdisc: Any) -> bool:
    return bool(qdisc.get_attr("TCA_KIND") == "clsact")


def _has_clsact(route: Any, ifindex: int) -> bool:
    return any(map(_is_clsact, route.get_qdiscs(index=ifindex)))


def _raw_filters(route: Any, ifindex: int, hook: Hook) -> list[Any]:
    found = route.get_filters(index=ifindex, parent=int(hook))
    return [one for one in found if one.get_attr("TCA_OPTIONS") is not None]


def _filters(route: Any, ifindex: int) -> Iterator[Filter]:
    for hook in Hook:
        for one in _raw_filters(route, ifindex, hook):
            options = one.get_attr("TCA_OPTIONS")
            if one.get_attr("TCA_KIND") != "bpf":
                continue
            name = options.get_attr("TCA_BPF_NAME") or ""
            if name.startswith(NAME):
                yield Filter(ifindex, hook, name.removeprefix(NAME))
