"""Sidecars: an endpoint's own namespace made ready, and left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bpf import places, routing, tc
from bpf.datapath import Datapath
from bpf.errors import BpfError
from bpf.netns import NamespaceGone, within
from tests.bpf.nodes import ALLOW_ALL, Namespace, Node

Make = Callable[[], Namespace]


def test_a_sidecar(node: Node, datapath: Datapath, namespaces: Make) -> None:
    """Programs, rules and sysctls are inside the endpoint's namespace, and leave it again."""
    inside = namespaces()
    link = node.endpoint(1, inside)
    index = inside.ifindex("eth0")
    sidecar = replace(link, ifindex=index, netns=inside.path)
    datapath.attach(sidecar)
    assert tc.filters(netns=node.namespace.path) == []
    assert {found.hook for found in tc.filters(netns=inside.path)} == set(tc.Hook)
    assert not node.reaches("10.0.0.1")
    datapath.set_policy(1, ALLOW_ALL)
    assert node.reaches("10.0.0.1")
    assert within(inside.path, lambda: routing.lacking(routing.SIDECAR)) == []
    assert datapath._maps["addresses"].count() == 0
    directions = {(c.ingress, c.reason) for c in datapath.counters() if c.endpoint == 1}
    assert (False, 0) in directions
    assert (True, 0) in directions
    datapath.close()
    again = node.open()
    try:
        assert again.attached() == {1: sidecar}
        again.attach(sidecar)
        assert again.programs.loaded == 0
        assert node.reaches("10.0.0.1")
        again.detach(1)
        assert tc.filters(netns=inside.path) == []
        assert not within(inside.path, routing.has_any_rules)
        assert places.node_lacks(node.namespace.path) == []
    finally:
        again.close()


def test_two_sidecars_with_equal_interfaces(
    node: Node, datapath: Datapath, namespaces: Make
) -> None:
    insides = [namespaces(), namespaces()]
    sidecars = [
        replace(node.endpoint(n, inside), ifindex=inside.ifindex("eth0"), netns=inside.path)
        for n, inside in enumerate(insides, 1)
    ]
    for sidecar in sidecars:
        datapath.attach(sidecar)
    assert datapath.programs.compiled <= 2
    datapath.set_policy(1, ALLOW_ALL)
    assert [node.reaches(sidecar.ipv4) for sidecar in sidecars] == [True, False]


def test_a_sidecar_whose_namespace_is_gone(
    node: Node, datapath: Datapath, namespaces: Make
) -> None:
    inside = namespaces()
    sidecar = replace(node.endpoint(1, inside), ifindex=inside.ifindex("eth0"), netns=inside.path)
    datapath.attach(sidecar)
    subprocess.run(["ip", "netns", "del", inside.name], check=True)
    with pytest.raises(NamespaceGone):
        datapath.attach(sidecar)
    assert datapath.detach(1)
    assert datapath.attached() == {}


def test_programs_that_changed_meanwhile(node: Node, namespaces: Make, tmp_path: Path) -> None:
    """A release that was installed beside a running agent: nothing is taken for the other."""
    source = tmp_path / "judge.c"
    shutil.copy(node.config.source, source)
    inside = namespaces()
    link = replace(node.endpoint(1, inside), ifindex=inside.ifindex("eth0"), netns=inside.path)
    datapath = node.open(source=source)
    try:
        source.write_text(source.read_text() + "\n")
        with pytest.raises(BpfError, match="has changed since the agent started"):
            datapath.attach(link)
        assert datapath.attached() == {}
    finally:
        datapath.close()
