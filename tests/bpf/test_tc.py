from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import syscall, tc
from bpf.errors import BpfError
from bpf.netlink import InterfaceGone
from bpf.netns import NamespaceGone, within
from tests.bpf.nodes import Namespace

PASS = bytes.fromhex("b700000000000000 9500000000000000")


@pytest.fixture
def program(privileged: None) -> Iterator[int]:
    fd = syscall.load_program(3, PASS, "pass")
    yield fd
    os.close(fd)


def test_attach_and_detach(namespace: Namespace, program: int) -> None:
    index = namespace.veth("v0", "v1")
    for _ in range(2):
        for hook in tc.Hook:
            tc.attach(index, hook, program, f"{hook.name}-x", namespace.path)
    wanted = [tc.Filter(index, hook, f"{hook.name}-x") for hook in tc.Hook]
    assert tc.filters(index, namespace.path) == wanted
    assert tc.filters(netns=namespace.path) == wanted
    assert "direct-action" in namespace.tc("filter", "show", "dev", "v0", "ingress")
    for _ in range(2):
        tc.detach(index, namespace.path)
        assert tc.filters(netns=namespace.path) == []
        assert "clsact" not in namespace.tc("qdisc", "show", "dev", "v0")


def test_from_an_event_loop(namespace: Namespace, program: int) -> None:
    """pyroute2 has one of its own, and would refuse."""
    index = namespace.veth("v0", "v1")

    async def attach() -> list[tc.Filter]:
        tc.attach(index, tc.Hook.INGRESS, program, "x")
        found = tc.filters()
        tc.detach(index)
        return found

    found = within(namespace.path, lambda: asyncio.run(attach()))
    assert found == [tc.Filter(index, tc.Hook.INGRESS, "x")]


def test_others_filters_stay(namespace: Namespace, program: int, bpffs: Path) -> None:
    index = namespace.veth("v0", "v1")
    syscall.pin(program, bpffs / "other")
    place = ("dev", "v0", "ingress", "prio", "7", "bpf", "direct-action")
    namespace.tc("qdisc", "add", "dev", "v0", "clsact")
    namespace.tc("filter", "add", *place, "object-pinned", str(bpffs / "other"))
    tc.attach(index, tc.Hook.INGRESS, program, "x", namespace.path)
    assert [found.name for found in tc.filters(index, namespace.path)] == ["x"]
    tc.detach(index, namespace.path)
    assert tc.filters(index, namespace.path) == []
    assert "pref 7" in namespace.tc("filter", "show", "dev", "v0", "ingress")


def test_an_interface_that_is_gone(namespace: Namespace, program: int) -> None:
    with pytest.raises(InterfaceGone, match="to interface 9999: No such device"):
        tc.attach(9999, tc.Hook.EGRESS, program, "x", namespace.path)
    tc.detach(9999, namespace.path)


def test_a_namespace_that_is_gone(program: int) -> None:
    with pytest.raises(NamespaceGone):
        tc.attach(1, tc.Hook.EGRESS, program, "x", "/run/netns/nowhere")


def test_a_program_of_another_kind(namespace: Namespace, privileged: None) -> None:
    index = namespace.veth("v0", "v1")
    fd = syscall.load_program(1, PASS, "filter")
    with pytest.raises(BpfError, match=f"cannot be attached to interface {index}: "):
        tc.attach(index, tc.Hook.EGRESS, fd, "x", namespace.path)
    os.close(fd)
