"""Endpoints' interfaces and addresses, through a data path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bpf import schema, tc
from bpf.datapath import Datapath
from bpf.errors import BpfError
from bpf.netlink import InterfaceGone
from tests.bpf.nodes import ALLOW_ALL, Namespace, Node

Make = Callable[[], Namespace]


def test_links_that_cannot_be(node: Node, datapath: Datapath, namespaces: Make) -> None:
    one, two = (node.endpoint(number, namespaces()) for number in (1, 2))
    datapath.attach(one)
    for link, reason in (
        (replace(two, ifindex=one.ifindex), "interface .* is endpoint 1's"),
        (replace(two, ipv4=one.ipv4), r"address 10\.0\.0\.1 is endpoint 1's"),
        (replace(two, ipv4="fd00::9"), "is not an IPv4 address"),
        (replace(two, ipv6="10.0.0.9"), "is not an IPv6 address"),
        (replace(two, ipv4="10.0.0"), "is not an IP address"),
        (replace(two, ipv6="::ffff:10.0.0.9"), "is not an IPv6 address"),
        (replace(two, identity=1 << 32), "4294967296 is no identity"),
        (replace(two, number=65536), "numbers are 1 to 65535"),
        (replace(two, ifindex=9999), "endpoint 2: interface 9999: No such device"),
        (replace(two, netns="/run/netns/nowhere"), "nowhere: No such file"),
    ):
        with pytest.raises(BpfError, match=reason):
            datapath.attach(link)
    with pytest.raises(BpfError, match="endpoint 2 is not attached there"):
        datapath.update(two)
    assert datapath.attached() == {1: one}
    assert datapath._maps["links"].count() == 1


def test_a_failed_attachment_leaves_nothing(
    node: Node, datapath: Datapath, namespaces: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = node.endpoint(1, namespaces())
    datapath.set_policy(1, ALLOW_ALL)
    real = tc.attach

    def fail(ifindex: int, hook: tc.Hook, *rest: Any) -> None:
        if hook is tc.Hook.EGRESS:
            raise InterfaceGone("gone")
        real(ifindex, hook, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(tc, "attach", fail)
        with pytest.raises(InterfaceGone):
            datapath.attach(link)
    assert datapath.attached() == {}
    assert tc.filters(netns=node.namespace.path) == []
    assert all(not datapath._maps[m].items() for m in ("links", "endpoints", "addresses"))
    assert node.sysctl("ipv4/conf/lxc1/accept_local") == "0"
    datapath.attach(link)
    assert node.reaches(link.ipv4)


def test_a_port_of_a_bridge_is_refused(node: Node, datapath: Datapath, namespaces: Make) -> None:
    link = node.endpoint(1, namespaces())
    node.namespace.ip("link", "add", "br0", "type", "bridge")
    node.namespace.ip("link", "set", "lxc1", "master", "br0")
    with pytest.raises(BpfError, match="lxc1 is a port of a bridge"):
        datapath.attach(link)
    assert datapath.attached() == {}


def test_an_endpoint_moves(node: Node, datapath: Datapath, namespaces: Make) -> None:
    """Another interface, as after its namespace was made anew; and another address."""
    old = node.endpoint(1, namespaces())
    datapath.attach(old)
    datapath.set_policy(1, ALLOW_ALL)
    node.namespace.ip("link", "del", "lxc1")
    new = replace(node.endpoint(3, namespaces()), number=1, identity=99)
    datapath.attach(new)
    assert datapath.attached() == {1: new}
    assert node.reaches("10.0.0.3")
    assert datapath._maps["links"].count() == 1
    assert datapath._maps["addresses"].count() == 2
    update = replace(new, ipv6="", identity=100)
    datapath.update(update)
    assert datapath._maps["addresses"].count() == 1
    raw = datapath._maps["endpoints"].get(schema.U32.pack(1))
    assert raw is not None
    assert schema.ENDPOINT.unpack(raw)[0] == 100


def test_an_interface_that_is_gone(node: Node, datapath: Datapath, namespaces: Make) -> None:
    link = node.endpoint(1, namespaces())
    datapath.attach(link)
    node.namespace.ip("link", "del", "lxc1")
    assert datapath.detach(1)
    assert datapath._maps["links"].count() == 0


def test_an_interface_that_is_renamed(node: Node, datapath: Datapath, namespaces: Make) -> None:
    link = node.endpoint(1, namespaces())
    datapath.attach(link)
    datapath.set_policy(1, ALLOW_ALL)
    for command in ("link set lxc1 down", "link set lxc1 name other", "link set other up"):
        node.namespace.ip(*command.split())
    node.namespace.ip(*["route", "add", "10.0.0.1", "dev", "other"])
    assert node.reaches("10.0.0.1")
    assert node.sysctl("ipv4/conf/other/accept_local") == "1"
    datapath.detach(1)
    assert node.sysctl("ipv4/conf/other/accept_local") == "0"
