"""From what a user names - a namespace, a process, an interface - to an endpoint's attachment.

An endpoint is a network namespace that hangs on the node by a veth, and is routed: its packets
come out of the node's end of the veth and go where the node's routes lead.  Both ends must agree
on that: the one inside says the number of its peer and in which namespace that is, the node's one
says the same of it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from itertools import chain
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from node.links.namespaces import (
    LinkError,
    all_paths,
    boot_id,
    cookie,
    inside,
    open_namespace,
    path_of,
    path_of_process,
)

MAX_INTERFACE = 15
"""Longest name of an interface, bytes (IFNAMSIZ of Linux, less the closing zero)."""

_GLOBAL = 0
"""The scope of addresses that others can reach (RT_SCOPE_UNIVERSE)."""

_UNUSABLE = 0x01 | 0x08 | 0x20
"""IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED of an IPv6 address."""


class Gone(LinkError):
    """What an endpoint was attached to is not there any more; the text says what."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where an endpoint is attached.

    interface, ifindex: the node's end of its veth. netns: a path of its namespace; cookie and
    boot: which namespace that was (namespaces.py); nsid: what the node's namespace calls it.
    inner, inner_ifindex: the end inside. addresses: the endpoint's, IPv4 first.
    """

    interface: str
    ifindex: int
    netns: str
    cookie: int
    boot: str
    nsid: int
    inner: str
    inner_ifindex: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Link:
    """An interface, as RTM_GETLINK has it. nsid: of its peer, None: its own namespace."""

    index: int
    name: str
    kind: str
    peer: int
    nsid: int | None
    master: int


@dataclass(frozen=True, slots=True)
class _Inside:
    """What a namespace has. node: what it calls the node's namespace, if it calls it anything."""

    cookie: int
    node: int | None
    links: Sequence[_Link]
    addresses: Sequence[tuple[int, str]]


def discover(
    *,
    netns: str = "",
    pid: int = 0,
    interface: str = "",
    inner: str = "",
    addresses: Sequence[str] = (),
) -> Attachment:
    """The attachment of the endpoint that is meant, seen from the caller's namespace.

    netns: the name or the path of its namespace, or pid: a process in it. interface: the node's
    end of its veth; needed if there are several, enough by itself. inner: the name of the end
    inside, for the same purpose. addresses: the endpoint's, if the interface has more than one
    of a version. Raises LinkError, which says what would do.
    """
    _check_interface(interface)
    _check_interface(inner)
    if netns and pid:
        raise LinkError("an endpoint's namespace is given by --netns or by --pid, not by both")
    if pid < 0 or not (netns or pid or interface):
        raise LinkError("name the endpoint's namespace, a process in it, or the node's interface")
    with _netlink() as node:
        given = _by_name(node, interface) if interface else None
        if netns:
            path = path_of(netns)
        elif pid:
            path = path_of_process(pid)
        else:
            assert given is not None
            path = _path_behind(node, _veth(given))
        with open_namespace(path) as descriptor:
            seen = _look(descriptor)
            if seen.cookie == cookie():
                raise LinkError(f"{path!r} is the node's own namespace: that is no endpoint")
            link, end = _pair(node, seen, path, given, inner)
            _refuse_port(node, link)
            found = _addresses(seen, end, path, addresses)
            nsid = _nsid(node, descriptor)
    assert nsid is not None
    return Attachment(
        link.name,
        link.index,
        path,
        seen.cookie,
        boot_id(),
        nsid,
        end.name,
        end.index,
        found,
    )


def refresh(attachment: Attachment) -> Attachment:
    """`attachment` as it is now: interfaces may have other names, the namespace another path.

    addresses: those of the attachment's that are still there. Raises Gone.
    """
    if attachment.boot != boot_id():
        raise Gone(f"{attachment.interface} was there before this machine booted")
    with _netlink() as node:
        link = _by_index(node, attachment.ifindex)
        if link is None:
            raise Gone(f"interface {attachment.interface} (number {attachment.ifindex}) is gone")
        if (link.kind, link.peer) != ("veth", attachment.inner_ifindex):
            raise Gone(f"interface {link.name} does not lead to {attachment.inner} any more")
        path, seen = _find_again(node, attachment, link)
    end = next((end for end in seen.links if end.index == attachment.inner_ifindex), None)
    if end is None or end.peer != link.index:
        raise Gone(f"{attachment.inner} is not in {path} any more")
    here = {address for index, address in seen.addresses if index == end.index}
    return replace(
        attachment,
        interface=link.name,
        netns=path,
        inner=end.name,
        addresses=tuple(address for address in attachment.addresses if address in here),
    )


def _find_again(node: IPRoute, attachment: Attachment, link: _Link) -> tuple[str, _Inside]:
    """The attachment's namespace: where it was, else wherever it can be seen."""
    for path in chain((attachment.netns,), _paths_behind(node, link)):
        try:
            with open_namespace(path) as descriptor:
                seen = _look(descriptor)
        except LinkError:
            continue
        if seen.cookie == attachment.cookie:
            return path, seen
    raise Gone(f"the namespace {attachment.netns} is gone")


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    """A netlink socket in the caller's namespace; what goes wrong with it is a LinkError."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except (NetlinkError, OSError) as error:
        raise LinkError(f"the kernel does not say what interfaces there are: {error}") from error


def _look(descriptor: int) -> _Inside:
    """What the namespace of `descriptor` has, seen from the caller's."""
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(descriptor, partial(_look_around, ours))
    finally:
        os.close(ours)


def _look_around(node: int) -> _Inside:
    with _netlink() as netlink:
        links = [_link(message) for message in netlink.get_links()]
        addresses = [
            (message["index"], str(ip_address(message.get_attr("IFA_ADDRESS"))))
            for message in netlink.get_addr()
            if _usable(message)
        ]
        return _Inside(cookie(), _nsid(netlink, node), links, addresses)


def _usable(message: Any) -> bool:
    """Whether an address is one that others know an endpoint by."""
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    unusable = message["family"] == socket.AF_INET6 and flags & _UNUSABLE
    return message["scope"] == _GLOBAL and not unusable


def _link(message: Any) -> _Link:
    info = message.get_attr("IFLA_LINKINFO")
    return _Link(
        message["index"],
        message.get_attr("IFLA_IFNAME"),
        (info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        message.get_attr("IFLA_LINK") or 0,
        message.get_attr("IFLA_LINK_NETNSID"),
        message.get_attr("IFLA_MASTER") or 0,
    )


def _nsid(netlink: IPRoute, descriptor: int) -> int | None:
    """What the namespace of `netlink` calls the one of `descriptor`."""
    found = netlink.get_netnsid(fd=descriptor)
    # The kernel says -1, which is read as an unsigned number or as it is.
    number = None if found is None else found["nsid"]
    return None if number in (None, -1, 2**32 - 1) else int(number)


def _check_interface(name: str) -> None:
    if name and (
        not name.isprintable()
        or len(os.fsencode(name)) > MAX_INTERFACE
        or name in (".", "..")
        or any(character in "/: " for character in name)
    ):
        raise LinkError(f"{name[:80]!r} is no name of an interface")


def _by_name(netlink: IPRoute, name: str) -> _Link:
    return _get(netlink, ifname=name) or _absent(name)


def _by_index(netlink: IPRoute, index: int) -> _Link | None:
    return _get(netlink, index=index)


def _get(netlink: IPRoute, **which: Any) -> _Link | None:
    try:
        return next((_link(message) for message in netlink.link("get", **which)), None)
    except NetlinkError:
        return None


def _absent(name: str) -> _Link:
    raise LinkError(f"the node has no interface {name!r}")


def _veth(link: _Link) -> _Link:
    """`link`, if it is an end of a veth whose other end is elsewhere."""
    if link.kind != "veth":
        what = f"a {link.kind}" if link.kind else "loopback or hardware"
        raise LinkError(f"{link.name} is {what}; an endpoint hangs on the node by a veth")
    if link.nsid is None:
        raise LinkError(
            f"both ends of the veth {link.name} are in the node's namespace: no endpoint is there"
        )
    return link


def _refuse_port(node: IPRoute, link: _Link) -> None:
    """Raises LinkError for an interface whose packets do not go by the node's routes."""
    if link.master:
        master = _by_index(node, link.master)
        kind, name = (master.kind or "master", master.name) if master else ("master", "?")
        raise LinkError(
            f"{link.name} is a port of the {kind} {name}: what is switched there never comes by "
            "the node's routes, so it cannot be redirected; attach endpoints by routed veths "
            "(the CNI plugin ptp does)"
        )


def _path_behind(node: IPRoute, link: _Link) -> str:
    for path in _paths_behind(node, link):
        return path
    raise LinkError(
        f"the namespace behind {link.name} has no name and no process that can be seen from "
        "here: name it with --netns PATH"
    )


def _paths_behind(node: IPRoute, link: _Link) -> Iterator[str]:
    """Where the namespace of a veth's other end can be seen."""
    if link.nsid is None:
        return
    for path in all_paths():
        try:
            with open_namespace(path) as descriptor:
                found = _nsid(node, descriptor)
        except LinkError:
            continue
        if found == link.nsid:
            yield path


def _pair(
    node: IPRoute, seen: _Inside, path: str, given: _Link | None, inner: str
) -> tuple[_Link, _Link]:
    """The one veth between the node and a namespace: the node's end, and the one inside."""
    pairs = []
    for end in seen.links:
        if end.kind == "veth" and end.nsid is not None and end.nsid == seen.node:
            link = _by_index(node, end.peer)
            if link is not None and (link.kind, link.peer) == ("veth", end.index):
                pairs.append((link, end))
    wanted = [
        (link, end)
        for link, end in pairs
        if (given is None or link.index == given.index) and inner in ("", end.name)
    ]
    if len(wanted) == 1:
        return wanted[0]
    shown = ", ".join(f"{link.name} (inside: {end.name})" for link, end in pairs)
    if len(wanted) > 1:
        raise LinkError(
            f"several veths lead from {path!r} to the node; name one with --interface: {shown}"
        )
    if given is not None:
        _veth(given)
    if pairs:
        what = " and ".join(
            text
            for text in (given and f"interface {given.name}", inner and f"{inner} inside")
            if text
        )
        raise LinkError(f"{what} is no end of a veth between {path!r} and the node; {shown} is")
    others = ", ".join(
        f"{link.name} ({link.kind or 'hardware'})" for link in seen.links if link.index != 1
    )
    raise LinkError(
        f"no veth leads from {path!r} to the node: it has "
        + (f"{others}, none of them with its other end here" if others else "only loopback")
    )


def _addresses(seen: _Inside, end: _Link, path: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """One address of each version. Raises LinkError if that is nothing, or a choice."""
    here = [address for index, address in seen.addresses if index == end.index]
    try:
        normal = [str(ip_address(address)) for address in wanted]
    except ValueError as error:
        raise LinkError(str(error)) from error
    for address in normal:
        if address not in here:
            has = f"it has {', '.join(here)}" if here else "it has none"
            raise LinkError(f"{address} is no address of {end.name} in {path!r}: {has}")
    chosen = normal or here
    if not chosen:
        raise LinkError(f"{end.name} in {path!r} has no IPv4 and no global IPv6 address (yet)")
    for version in (4, 6):
        many = [address for address in chosen if ip_address(address).version == version]
        if len(many) > 1:
            raise LinkError(
                f"{end.name} in {path!r} has several IPv{version} addresses; an endpoint has one: "
                f"choose with --address: {', '.join(many)}"
            )
    return tuple(sorted(chosen, key=lambda address: ip_address(address).version))
