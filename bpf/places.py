"""Namespaces and their interfaces made ready for programs, and left as they were found.

What is changed is in the memory before it is changed. `netns` is the path of the namespace
where it is done; empty: the process's own.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from bpf import links, routing, tc
from bpf.links import Link
from bpf.memory import Memory
from bpf.netns import NamespaceGone, cookie, within

log = logging.getLogger(__name__)


def prepare_node(memory: Memory, netns: str) -> None:
    """Rules, the table and sysctls of the node."""

    def action() -> None:
        namespace = memory.namespace(cookie(), netns)
        memory.save()
        routing.change(routing.node_sysctls(), namespace, memory.save)
        routing.add_rules()

    within(netns, action)


def prepare_link(memory: Memory, link: Link, netns: str) -> None:
    """Sysctls of the interface; in a sidecar, what its namespace needs too."""

    def action() -> None:
        namespace = memory.namespace(cookie(), netns)
        if link.netns:
            namespace.sidecars[link.number] = link.ifindex
            memory.save()
            routing.add_rules()
        routing.change(_link_sysctls(link), namespace, memory.save)

    within(netns, action)


def node_lacks(netns: str) -> list[str]:
    """What is not as `prepare_node` has made it, in words. Raises `BpfError`."""
    return within(netns, lambda: routing.lacking(routing.node_sysctls()))


def links_lack(told: Mapping[Link, str], netns: str) -> dict[int, list[str]]:
    """What links of one namespace lack of programs and of `prepare_link`, by number, in words.

    told: each one's program name. What is gone lacks nothing. Raises `BpfError`.
    """

    def action() -> dict[int, list[str]]:
        there = {index for index, _ in socket.if_nameindex()}
        placed = {*tc.filters()}
        found: dict[int, list[str]] = {}
        for link in told:
            if link.ifindex not in there:
                continue
            missing = {*links.filters(link, told[link])} - placed
            found[link.number] = [f"program at {one.hook.name.lower()}" for one in missing]
            if link.netns:
                found[link.number] += routing.lacking(_link_sysctls(link))
            else:
                found[link.number] += routing.wrong(_link_sysctls(link))
        return {number: sorted(lacking) for number, lacking in found.items() if lacking}

    try:
        return within(netns, action)
    except NamespaceGone:
        return {}


def _link_sysctls(link: Link) -> dict[str, str]:
    own = routing.link_sysctls(link.ifindex)
    return routing.SIDECAR | own if link.netns else own


def leave_link(memory: Memory, link: Link, netns: str) -> None:
    """Programs and sysctls of one interface; a sidecar's namespace is left by the last one.

    What is gone needs nothing.
    """

    def action() -> None:
        number = cookie()
        namespace = memory.namespaces.get(number)
        if namespace is None or (link.netns and link.number not in namespace.sidecars):
            return  # another namespace, which has the path of the one that is gone
        tc.detach(link.ifindex)
        routing.restore(namespace, link.ifindex)
        namespace.sidecars.pop(link.number, None)
        if link.netns and not namespace.sidecars:
            routing.remove_rules()
            routing.restore(namespace)
            del memory.namespaces[number]
        memory.save()

    try:
        within(netns, action)
    except NamespaceGone:
        for number, namespace in list(memory.namespaces.items()):
            if namespace.sidecars.pop(link.number, None) and not namespace.sidecars:
                del memory.namespaces[number]
        memory.save()


def leave(memory: Memory, number: int, netns: str) -> list[str]:
    """Everything of ours in a namespace (the kernel's number); what it was, to be told."""

    def action() -> list[str]:
        if cookie() != number:
            return []
        done = []
        interfaces = sorted({found.ifindex for found in tc.filters()})
        for ifindex in interfaces:
            tc.detach(ifindex)
            done.append(f"programs on interface {ifindex}")
        if routing.has_any_rules():
            routing.remove_rules()
            done.append(f"rules and table {routing.TABLE}")
        namespace = memory.namespaces.get(number)
        if namespace is not None and namespace.sysctls:
            done.append(f"{len(namespace.sysctls)} sysctls put back")
            routing.restore(namespace)
        return [f"{netns or 'this network namespace'}: {what}" for what in done]

    try:
        done = within(netns, action)
    except NamespaceGone:
        done = []
    memory.namespaces.pop(number, None)
    return done
