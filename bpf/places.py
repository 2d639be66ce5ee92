"""Namespaces and their interfaces made ready for programs, and left as they were found.

What is changed is in the memory before it is changed. `netns` is the path of the namespace
where it is done; empty: the process's own.
"""

from __future__ import annotations

import logging

from bpf import routing, tc
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
        wanted = routing.link_sysctls(link.ifindex)
        if link.netns:
            namespace.sidecars[link.number] = link.ifindex
            memory.save()
            routing.add_rules()
            wanted = routing.SIDECAR | wanted
        routing.change(wanted, namespace, memory.save)

    within(netns, action)


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
