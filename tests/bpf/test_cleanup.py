from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bpf import tc
from bpf.cleanup import check_namespace, cleanup
from bpf.errors import BpfError
from bpf.netns import within
from tests.bpf.nodes import ALLOW_ALL, Namespace, Node

Make = Callable[[], Namespace]


def state(namespace: Namespace) -> dict[str, object]:
    """Everything that a data path may change in a namespace."""

    def sysctls() -> dict[str, str]:
        files = [
            path
            for version in ("ipv4", "ipv6")
            for path in Path(f"/proc/sys/net/{version}").rglob("*")
            if path.name in ("ip_forward", "forwarding", "rp_filter", "accept_local")
        ]
        return {str(path): path.read_text() for path in files}

    return {
        "rules": namespace.ip("rule") + namespace.ip("-6", "rule"),
        # The kernel adds IPv6 routes of its own, when it has probed its addresses.
        "routes": namespace.ip("-4", "route", "show", "table", "all"),
        "table": "table 2004" in namespace.ip("-6", "route", "show", "table", "all"),
        "qdiscs": namespace.tc("qdisc"),
        "sysctls": within(namespace.path, sysctls),
    }


def test_nothing_is_left(node: Node, namespaces: Make) -> None:
    inside = namespaces()
    link, other = node.endpoint(1, namespaces()), node.endpoint(2, inside)
    sidecar = replace(other, ifindex=inside.ifindex("eth0"), netns=inside.path)
    node.set_sysctl("ipv4/conf/all/rp_filter", "2")
    node.set_sysctl("ipv4/conf/lxc1/rp_filter", "1")
    before = state(node.namespace), state(inside)
    datapath = node.open()
    for one in (link, sidecar):
        datapath.attach(one)
        datapath.set_policy(one.number, ALLOW_ALL)
    assert node.sysctl("ipv4/conf/lxc1/rp_filter") == "0"
    assert state(node.namespace) != before[0]
    assert state(inside) != before[1]
    datapath.close()
    done = cleanup(node.config)
    assert state(node.namespace) == before[0]
    assert state(inside) == before[1]
    assert not node.config.root.exists()
    assert list(node.config.state.iterdir()) == []
    for told in (
        f"{node.namespace.path}: programs on interface {link.ifindex}",
        f"{inside.path}: programs on interface {sidecar.ifindex}",
        f"{inside.path}: rules and table 2004",
        f"pins in {node.config.folder}",
    ):
        assert told in done
    assert cleanup(node.config) == []


def test_an_agent_that_runs_is_not_robbed(node: Node) -> None:
    datapath = node.open()
    with pytest.raises(BpfError, match="in use by another agent"):
        cleanup(node.config)
    datapath.close()


def test_after_a_crash(node: Node, namespaces: Make) -> None:
    """The pins are gone, the file of what was before is cut short: filters and rules still go."""
    link = node.endpoint(1, namespaces())
    datapath = node.open()
    datapath.attach(link)
    os.close(datapath._lock_fd)  # as the kernel does for a process that ends
    for path in [*node.config.folder.iterdir()][:7]:
        path.unlink()
    node.config.memory.write_text(node.config.memory.read_text()[:50])
    cleanup(node.config)
    assert tc.filters(netns=node.namespace.path) == []
    assert "2004" not in node.namespace.ip("rule")
    assert node.reaches(link.ipv4)
    assert not node.config.root.exists()


def test_a_namespace_and_an_interface_that_are_gone(node: Node, namespaces: Make) -> None:
    inside = namespaces()
    link, other = node.endpoint(1, namespaces()), node.endpoint(2, inside)
    node.set_sysctl("ipv4/ip_forward", "0")
    datapath = node.open()
    datapath.attach(link)
    datapath.attach(replace(other, ifindex=inside.ifindex("eth0"), netns=inside.path))
    datapath.close()
    node.namespace.ip("link", "del", "lxc1")
    subprocess.run(["ip", "netns", "del", inside.name], check=True)
    cleanup(node.config)
    assert "2004" not in node.namespace.ip("rule")
    assert node.sysctl("ipv4/ip_forward") == "0"
    assert cleanup(node.config) == []


def test_a_namespace_of_the_same_path_is_left_alone(node: Node, namespaces: Make) -> None:
    inside = namespaces()
    other = node.endpoint(2, inside)
    datapath = node.open()
    datapath.attach(replace(other, ifindex=inside.ifindex("eth0"), netns=inside.path))
    datapath.close()
    subprocess.run(["ip", "netns", "del", inside.name], check=True)
    subprocess.run(["ip", "netns", "add", inside.name], check=True)
    inside.ip(*["link", "set", "lo", "up"])
    inside.ip(*["rule", "add", "priority", "9", "fwmark", "0x200/0xf00", "lookup", "2004"])
    cleanup(node.config)
    assert "2004" in inside.ip("rule")


def test_whose_it_is(node: Node, namespaces: Make) -> None:
    check_namespace(node.config)
    node.open().close()
    check_namespace(node.config)
    elsewhere = replace(node.config, netns=namespaces().path)
    record = node.config.memory.read_text()
    node.config.memory.unlink()
    with pytest.raises(BpfError, match="of another network namespace"):
        check_namespace(elsewhere)  # by its pins
    for folder in node.config.root.iterdir():
        shutil.rmtree(folder)
    check_namespace(elsewhere)
    # By the record, which says this for the agent's own namespace.
    node.config.memory.write_text(record.replace(node.namespace.path, elsewhere.netns))
    with pytest.raises(BpfError, match="of another network namespace"):
        check_namespace(elsewhere)


def test_pins_of_others_are_told_of(node: Node) -> None:
    node.open().close()
    (node.config.root / "theirs").mkdir()
    with pytest.raises(BpfError, match="has pins that are not ours"):
        cleanup(node.config)
    assert [path.name for path in node.config.root.iterdir()] == ["theirs"]


def test_where_there_never_was_one(node: Node, tmp_path: Path) -> None:
    assert cleanup(node.config) == []
    assert cleanup(replace(node.config, root=tmp_path / "no" / "bpffs")) == []
