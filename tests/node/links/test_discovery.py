"""From a namespace, a process or an interface to an attachment, in real namespaces."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest

from demos.namespaces import Endpoint, Lab
from node.links.discovery import Attachment, Gone, discover, refresh
from node.links.namespaces import LinkError
from tests.conftest import MakeLab


def found(lab: Lab, **what: Any) -> Attachment:
    with lab.node.entered():
        return discover(**what)


def again(lab: Lab, attachment: Attachment) -> Attachment:
    with lab.node.entered():
        return refresh(attachment)


def assert_refused(lab: Lab, why: str, **what: Any) -> None:
    with pytest.raises(LinkError, match=why) as error:
        found(lab, **what)
    assert str(error.value).isprintable()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def expected(lab: Lab, endpoint: Endpoint) -> tuple[object, ...]:
    return (
        endpoint.interface,
        lab.node.ifindex(endpoint.interface),
        str(endpoint.path),
        "eth0",
        endpoint.ifindex(),
        (endpoint.ipv4, endpoint.ipv6),
    )


def seen(a: Attachment) -> tuple[object, ...]:
    return a.interface, a.ifindex, a.netns, a.inner, a.inner_ifindex, a.addresses


def test_by_name_path_process_and_interface(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    server = lab["server"]
    process = server.popen("sleep", "60")
    ways = (
        {"netns": server.netns},
        {"netns": str(server.path)},
        {"pid": process.pid},
        {"interface": server.interface},
        {"netns": server.netns, "interface": server.interface, "inner": "eth0"},
        {"netns": server.netns, "addresses": (server.ipv6, server.ipv4)},
    )
    attachments = [found(lab, **way) for way in ways]
    assert all(seen(a) == expected(lab, server) for a in attachments)
    assert len({a.cookie for a in attachments}) == 1
    assert found(lab, netns=lab["client"].netns).cookie != attachments[0].cookie


def test_one_address_is_enough(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    client = lab["client"]
    assert found(lab, netns=client.netns, addresses=(client.ipv6,)).addresses == (client.ipv6,)
    client.ip(f"addr del {client.ipv4}/32 dev eth0")
    assert found(lab, netns=client.netns).addresses == (client.ipv6,)


def test_addresses_that_do_not_do(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    client = lab["client"]
    name = {"netns": client.netns}
    assert_refused(lab, "10.9.9.9 is no address of eth0", **name, addresses=("10.9.9.9",))
    assert_refused(lab, "does not appear to be", **name, addresses=("fe80::\x1b",))
    client.ip("addr add 10.1.0.77/32 dev eth0")
    assert_refused(lab, "several IPv4 addresses.*--address: .*10.1.0.77", **name)
    chosen = found(lab, **name, addresses=("10.1.0.77",))
    assert chosen.addresses == ("10.1.0.77",)
    client.ip("addr flush dev eth0")
    assert_refused(lab, "has no IPv4 and no global IPv6 address", **name)


def test_what_is_no_endpoint(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    lab.node.ip("link add both type veth peer name ends")
    assert_refused(lab, "by --netns or by --pid, not by both", netns="a", pid=1)
    assert_refused(lab, "name the endpoint's namespace")
    assert_refused(lab, "name the endpoint's namespace", pid=-1)
    assert_refused(lab, "the node's own namespace", netns=lab.node.netns)
    assert_refused(lab, "no network namespace 'nobody'", netns="nobody")
    assert_refused(lab, "no process 999999999", pid=999999999)
    assert_refused(lab, "no interface 'lxc9'", interface="lxc9")
    assert_refused(lab, "lo is loopback or hardware", interface="lo")
    assert_refused(lab, "both ends of the veth both", interface="both")
    assert_refused(lab, "both ends of the veth both", netns=lab["client"].netns, interface="both")
    for odd in ("x" * 16, "a b", "a/b", "..", "\x1b[2J", "é" * 8):
        assert_refused(lab, "is no name of an interface", interface=odd)
    assert_refused(lab, "eth7 inside is no end of a veth", netns=lab["client"].netns, inner="eth7")


def test_a_namespace_without_veth(make_lab: MakeLab) -> None:
    lab, other = make_lab("client"), make_lab("stranger")
    assert_refused(lab, "lxc1 .veth., none of them with its other end", netns=other.node.netns)
    assert_refused(lab, "eth0 .veth., none of them", netns=other["stranger"].netns)
    lab["client"].ip("link del eth0")
    assert_refused(lab, "it has only loopback", netns=lab["client"].netns)


def test_several_veths(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    client = lab["client"]
    lab.node.ip(f"link add second type veth peer name eth1 netns {client.netns}")
    client.ip("addr add 10.1.0.50/32 dev eth1")
    assert_refused(
        lab,
        r"several veths.*--interface: lxc1 \(inside: eth0\), second \(inside: eth1\)",
        netns=client.netns,
    )
    by_outer = found(lab, netns=client.netns, interface="second")
    assert (
        by_outer == found(lab, netns=client.netns, inner="eth1") == found(lab, interface="second")
    )
    assert by_outer.addresses == ("10.1.0.50",)
    assert_refused(
        lab, "lxc1 and eth1 inside is no end", netns=client.netns, interface="lxc1", inner="eth1"
    )


def test_a_port_of_a_bridge(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    lab.node.ip("link add br0 type bridge", "link set lxc1 master br0")
    assert_refused(lab, "lxc1 is a port of the bridge br0", netns=lab["client"].netns)
    assert_refused(lab, "lxc1 is a port of the bridge br0", interface="lxc1")
    assert_refused(lab, "br0 is a bridge", interface="br0")


def test_refresh_follows_names(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    client = lab["client"]
    process = client.popen("sleep", "60")
    attachment = found(lab, netns=client.netns)
    assert again(lab, attachment) == attachment
    lab.node.ip("link set lxc1 name other")
    client.ip("link set eth0 name net0", f"addr del {client.ipv4}/32 dev net0")
    ip("netns", "del", client.netns)
    assert again(lab, attachment) == replace(
        attachment,
        interface="other",
        inner="net0",
        netns=f"/proc/{process.pid}/ns/net",
        addresses=(client.ipv6,),
    )


def test_refresh_sees_what_is_gone(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    attachment = found(lab, netns=lab["client"].netns)
    with pytest.raises(Gone, match="before this machine booted"):
        again(lab, replace(attachment, boot="another"))
    with pytest.raises(Gone, match=r"the namespace .* is gone"):
        again(lab, replace(attachment, cookie=attachment.cookie + 1_000_000))
    server = found(lab, netns=lab["server"].netns)
    lab["server"].ip("link del eth0")
    with pytest.raises(Gone, match=r"interface lxc2 .* is gone"):
        again(lab, server)


def test_a_number_that_is_given_again_is_somebody_else(make_lab: MakeLab) -> None:
    """The same interface numbers, names and addresses, the same path: another namespace."""
    lab = make_lab("client")
    client = lab["client"]
    attachment = found(lab, netns=client.netns)
    number = attachment.ifindex
    client.ip("link del eth0")
    ip("netns", "del", client.netns)
    ip("netns", "add", client.netns)
    lab.node.ip(
        f"link add lxc1 index {number} type veth peer name eth0 netns {client.netns} "
        f"index {attachment.inner_ifindex}"
    )
    client.ip(f"addr add {client.ipv4}/32 dev eth0")
    twin = found(lab, netns=client.netns, addresses=(client.ipv4,))
    assert (twin.ifindex, twin.netns, twin.interface) == (number, attachment.netns, "lxc1")
    with pytest.raises(Gone, match=r"the namespace .* is gone"):
        again(lab, attachment)
