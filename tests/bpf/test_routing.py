from __future__ import annotations

import pytest

from bpf import memory, routing
from bpf.cleanup import cleanup
from bpf.errors import BpfError
from bpf.netns import within
from tests.bpf.nodes import Namespace, Node


def lacking(namespace: Namespace) -> list[str]:
    """What it has not of rules and routes."""
    return within(namespace.path, lambda: routing.lacking({}))


def test_rules(namespace: Namespace) -> None:
    assert not within(namespace.path, routing.has_any_rules)
    for _ in range(2):
        within(namespace.path, routing.add_rules)
        assert lacking(namespace) == []
    for version in ("-4", "-6"):
        rules = namespace.ip(version, "rule").splitlines()
        assert sum("fwmark 0x200/0xf00 lookup 2004" in line for line in rules) == 1
        routes = namespace.ip(version, "route", "show", "table", "2004").splitlines()
        assert len(routes) == 1
        assert routes[0].startswith("local default dev lo")
    for _ in range(2):
        within(namespace.path, routing.remove_rules)
        assert not within(namespace.path, routing.has_any_rules)
    assert "2004" not in namespace.ip("rule") + namespace.ip("-6", "rule")


def test_where_ipv6_is_off(node: Node) -> None:
    node.set_sysctl("ipv6/conf/lo/disable_ipv6", "1")
    within(node.namespace.path, routing.add_rules)
    assert lacking(node.namespace) == []
    assert "2004" in node.namespace.ip("rule")
    within(node.namespace.path, routing.remove_rules)
    assert not within(node.namespace.path, routing.has_any_rules)


def test_rules_of_others_stay(namespace: Namespace) -> None:
    namespace.ip(*["rule", "add", "priority", "9", "fwmark", "0x300/0xf00", "lookup", "2004"])
    namespace.ip(*["rule", "add", "priority", "10", "fwmark", "0x200/0xf00", "lookup", "77"])
    within(namespace.path, routing.add_rules)
    within(namespace.path, routing.remove_rules)
    left = namespace.ip("rule")
    assert "0x300/0xf00 lookup 2004" in left
    assert "0x200/0xf00 lookup 77" in left


def test_half_of_it_is_completed_and_removed(namespace: Namespace) -> None:
    within(namespace.path, routing.add_rules)
    namespace.ip(*["-6", "route", "flush", "table", "2004"])
    assert lacking(namespace) == ["IPv6 route in table 2004"]
    assert within(namespace.path, routing.has_any_rules)
    within(namespace.path, routing.add_rules)
    assert lacking(namespace) == []
    namespace.ip(*["rule", "del", "priority", "9"])
    within(namespace.path, routing.remove_rules)
    assert not within(namespace.path, routing.has_any_rules)


def test_sysctls_are_remembered_once(node: Node) -> None:
    index = node.namespace.veth("v0", "v1")
    node.set_sysctl("ipv4/conf/v0/rp_filter", "2")
    kept = memory.Namespace(node.namespace.path)
    saved: list[dict[str, str]] = []

    def change(value: str) -> None:
        wanted = {f"net/ipv4/conf/{{{index}}}/rp_filter": value, "net/ipv4/no_such": "1"}
        routing.change(wanted, kept, lambda: saved.append(dict(kept.sysctls)))

    for value in ("0", "0", "1"):
        within(node.namespace.path, lambda value=value: change(value))
    assert saved == [{f"net/ipv4/conf/{{{index}}}/rp_filter": "2"}]
    assert node.sysctl("ipv4/conf/v0/rp_filter") == "1"
    within(node.namespace.path, lambda: routing.restore(kept, 9999))
    assert node.sysctl("ipv4/conf/v0/rp_filter") == "1"
    within(node.namespace.path, lambda: routing.restore(kept, index))
    assert node.sysctl("ipv4/conf/v0/rp_filter") == "2"
    assert kept.sysctls == {}


def test_a_default_route_of_a_router_stays(node: Node) -> None:
    """The node's uplink goes on to hear its router when the node forwards."""
    uplink, other = node.namespace.veth("up0", "up1"), node.namespace.veth("v0", "v1")
    node.namespace.ip(*["-6", "addr", "add", "fd01::2/64", "dev", "up0", "nodad"])
    node.namespace.ip(
        *["-6", "route", "add", "default", "via", "fd01::1", "dev", "up0", "proto", "ra"]
    )
    node.set_sysctl("ipv6/conf/all/forwarding", "0")
    node.set_sysctl("ipv6/conf/up0/accept_ra", "1")
    wanted = within(node.namespace.path, routing.node_sysctls)
    names = list(wanted)
    assert names.index(f"net/ipv6/conf/{{{uplink}}}/accept_ra") == 0
    assert not any(f"{{{other}}}" in name for name in names)
    node.open().close()
    assert node.sysctl("ipv6/conf/up0/accept_ra") == "2"
    assert node.sysctl("ipv6/conf/all/forwarding") == "1"
    cleanup(node.config)
    assert node.sysctl("ipv6/conf/up0/accept_ra") == "1"
    assert node.sysctl("ipv6/conf/all/forwarding") == "0"


def test_a_value_that_is_refused(node: Node) -> None:
    kept = memory.Namespace(node.namespace.path)

    def change() -> None:
        routing.change({"net/ipv4/ip_forward": "much"}, kept, lambda: None)

    with pytest.raises(BpfError, match="ip_forward cannot be set to much: Invalid argument"):
        within(node.namespace.path, change)


def test_an_interface_that_is_gone_needs_nothing(node: Node) -> None:
    kept = memory.Namespace(node.namespace.path, {"net/ipv4/conf/{9999}/rp_filter": "1"})
    within(node.namespace.path, lambda: routing.restore(kept))
    assert kept.sysctls == {}
