"""Identities that nodes share, in a real etcd: races, lost leases, restarts, lost data."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxylib.errors import ConfigError
from proxylib.proto import npds_pb2 as npds
from tests.xds.etcd_server import Etcd, eventually, needs_etcd
from xds.compilation import NETWORK_POLICY
from xds.control import ControlServer
from xds.engine import Change, Engine
from xds.etcd import EtcdStore
from xds.etcd_client import EtcdClient, EtcdError
from xds.identity import CLUSTER, LOCAL, Identities, MemoryStore
from xds.labels import LabelSet, Selector, label_set, parse_label
from xds.proto import etcd_pb2 as etcd

pytestmark = needs_etcd


def labels(*texts: str) -> LabelSet:
    return label_set(map(parse_label, texts))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.kill()


@dataclass
class Node:
    """A node's store, and what it was told of others."""

    server: Etcd
    name: str
    lease: int = 60
    delay: float = 600.0
    seen: dict[int, LabelSet] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = EtcdStore(
            [self.server.address],
            self.name,
            lease=self.lease,
            delay=self.delay,
        )
        self.store.start(self._changed, self.lost.extend)
        self.identities = Identities(self.store, local=MemoryStore(), delay=0)

    def _changed(self, identities: Mapping[int, LabelSet | None]) -> None:
        for number, found in identities.items():
            self.seen.pop(number, None)
            if found is not None:
                self.seen[number] = found

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()


def test_same_labels_same_number_and_others_hear_of_it(server: Etcd) -> None:
    a, b = labels("k8s:app=a", "k8s:env=prod"), labels("k8s:app=b")
    with Node(server, "one") as one, Node(server, "two") as two:
        numbers = one.identities.acquire([a, b])
        assert all(CLUSTER.first <= number <= 65536 for number in numbers.values())
        eventually(lambda: two.seen == {n: s for s, n in numbers.items()}, "two hears of both")
        assert two.identities.acquire([b, a]) == numbers
        with Node(server, "three") as three:
            assert three.seen == two.seen, "who comes later hears of all"


def test_nodes_that_race_agree_and_never_share_a_number(server: Etcd, monkeypatch: Any) -> None:
    # Few numbers to choose from, so that both races are lost often: labels and number.
    monkeypatch.setattr("xds.etcd.USUAL", CLUSTER.first + 200)
    keys = [f"k8s:n={n}" for n in range(60)]
    nodes = [Node(server, f"n{n}") for n in range(4)]
    start = threading.Barrier(len(nodes))

    def race(node: Node, turn: int) -> Mapping[str, int]:
        start.wait()
        return node.store.numbers(CLUSTER, keys[turn * 7 :] + keys[: turn * 7])

    with ThreadPoolExecutor(len(nodes)) as pool:
        answers = list(pool.map(race, nodes, range(len(nodes))))
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0].values())) == len(keys)
    stored = server.stored()
    for key, number in answers[0].items():
        assert stored[f"proxylib/identities/id/{number}"] == key
        assert stored[f"proxylib/identities/labels/{key}"] == str(number)
        assert {f"proxylib/identities/use/{number}/n{n}" for n in range(4)} <= stored.keys()
    for node in nodes:
        node.store.close()
    assert not any("/use/" in key for key in server.stored())


def test_a_number_goes_when_no_node_has_used_it_for_the_delay(server: Etcd) -> None:
    a, b = labels("k8s:app=a"), labels("k8s:app=b")
    with Node(server, "one", delay=0.2) as one, Node(server, "two", delay=0.2) as two:
        numbers = one.identities.acquire([a, b])
        two.identities.acquire([a])
        one.identities.release([a, b])
        one.identities.expire()
        eventually(lambda: len(two.store._users[numbers[b]]) == 0, "nobody uses b")
        two.store.collect()
        time.sleep(0.3)
        two.store.collect()
        eventually(lambda: one.seen == {numbers[a]: a}, "b is gone, a is used by two")
        assert two.identities.number(a) == numbers[a]
        # Taken out behind the back of a node that claims it: it gets another, not the same.
        assert one.identities.acquire([a]) == {a: numbers[a]}


def test_a_collector_does_not_take_what_a_node_has_just_claimed(server: Etcd) -> None:
    a = labels("k8s:app=a")
    with Node(server, "one", delay=0) as one, Node(server, "two") as two:
        number = one.identities.acquire([a])[a]
        one.identities.release([a])
        one.identities.expire()
        eventually(lambda: not one.store._users[number], "nobody uses it")
        two.store._users.clear()
        assert two.identities.acquire([a]) == {a: number}
        one.store._users.clear()  # As if the watch were late.
        one.store.collect()
        assert f"proxylib/identities/id/{number}" in server.stored()


def test_a_lost_lease_is_taken_anew(server: Etcd) -> None:
    a = labels("k8s:app=a")
    with Node(server, "one", lease=2) as one:
        number = one.identities.acquire([a])[a]
        use = f"proxylib/identities/use/{number}/one"
        one.store._client.revoke(one.store._lease)
        assert use not in server.stored()
        eventually(lambda: use in server.stored(), "it is used again")
        assert one.lost == []


def test_a_lease_that_is_missed_when_it_is_needed_is_taken_anew(server: Etcd) -> None:
    a, b = labels("k8s:app=a"), labels("k8s:app=b")
    with Node(server, "one", lease=600) as one:
        numbers = one.identities.acquire([a])
        one.store._client.revoke(one.store._lease)
        numbers |= one.identities.acquire([b])
        used = {f"proxylib/identities/use/{number}/one" for number in numbers.values()}
        assert used <= server.stored().keys()


def test_a_number_that_others_have_now_is_not_used_on(server: Etcd) -> None:
    a, b = labels("k8s:app=a"), labels("k8s:app=b")
    with Node(server, "one", lease=2) as one, Node(server, "two") as two:
        number = one.identities.acquire([a])[a]
        # What a collector does to a node that was cut off for longer than the delay.
        gone = [one.store._id(number), one.store._labels(str(a))]
        ops = [etcd.DeleteRangeRequest(key=key) for key in gone]
        success = [etcd.RequestOp(request_delete_range=op) for op in ops]
        one.store._client.txn(etcd.TxnRequest(success=success))
        two.store._candidate = lambda: number  # type: ignore[method-assign]
        assert two.identities.acquire([b]) == {b: number}
        one.store._client.revoke(one.store._lease)
        eventually(lambda: one.lost == [str(a)], "one is told that the number is not its own")
        stored = server.stored()
        assert stored[f"proxylib/identities/id/{number}"] == str(b)
        assert f"proxylib/identities/use/{number}/one" not in stored


def test_a_node_that_died_uses_nothing(server: Etcd) -> None:
    a = labels("k8s:app=a")
    one = Node(server, "one", lease=1)
    number = one.identities.acquire([a])[a]
    one.store._stopped.set()  # Its threads end, and nothing renews the lease.
    eventually(
        lambda: f"proxylib/identities/use/{number}/one" not in server.stored(), "the lease ends"
    )
    assert f"proxylib/identities/id/{number}" in server.stored()
    with Node(server, "one") as again:
        assert again.identities.acquire([a]) == {a: number}
    one.store.close()


def test_etcd_goes_and_comes_back(server: Etcd) -> None:
    a, b = labels("k8s:app=a"), labels("k8s:app=b")
    with Node(server, "one", lease=3) as one, Node(server, "two", lease=3) as two:
        numbers = dict(one.identities.acquire([a]))
        server.kill()
        assert one.identities.acquire([a]) == numbers, "what is known needs no etcd"
        with pytest.raises(ConfigError, match=f"etcd at {server.address}"):
            one.identities.acquire([b])
        server.start()

        def comes_back() -> bool:
            # What was begun while it was away may still tell that it was.
            with contextlib.suppress(ConfigError):
                numbers.update(one.identities.acquire([b]))
            return b in numbers

        eventually(comes_back, "etcd answers again")
        eventually(lambda: two.seen == {n: s for s, n in numbers.items()}, "two hears of b")
        assert two.identities.acquire([a, b]) == numbers


def test_lost_data_is_made_good_with_the_old_numbers(server: Etcd) -> None:
    a, b = labels("k8s:app=a"), labels("k8s:app=b")
    with Node(server, "one", lease=2) as one, Node(server, "two", lease=2) as two:
        numbers = one.identities.acquire([a, b])
        assert two.identities.acquire([b])[b] == numbers[b]
        server.kill(lose_data=True)
        server.start()
        wanted = {f"proxylib/identities/id/{n}": str(s) for s, n in numbers.items()}
        eventually(lambda: wanted.items() <= server.stored().items(), "both are there again")
        assert two.identities.acquire([a]) == {a: numbers[a]}
        assert one.lost == two.lost == []


def test_an_engine_hears_of_identities_of_other_nodes(server: Etcd) -> None:
    with Node(server, "one") as one, Node(server, "two") as two:
        engine = Engine(two.identities)
        number = one.identities.acquire([labels("k8s:app=far")])[labels("k8s:app=far")]
        eventually(lambda: number in two.seen, "two hears of it")
        engine.change(Change(identities=two.seen))
        assert number in engine.select(Selector())


def test_control_servers_share_identities(server: Etcd, tmp_path: Path) -> None:
    """Two nodes from files to resources; one loses a number, and takes another."""
    policy = """
kind: CiliumNetworkPolicy
metadata: {name: p}
spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]}
"""
    stores = [EtcdStore([server.address], f"n{n}", lease=2) for n in range(2)]
    controls = [
        ControlServer(tmp_path / f"{n}.sock", identities=Identities(store, local=MemoryStore()))
        for n, store in enumerate(stores)
    ]
    for n, (store, control) in enumerate(zip(stores, controls, strict=True)):
        store.start(control.identities_changed, control.renumber)
        endpoints = f"endpoints: [{{address: 10.0.0.{n}, labels: {{app: {'ab'[n]}}}}}]"
        control.set_documents({"p": policy}, endpoints)
    a = labels("unspec:app=a")
    (of_a,) = [n for n, found in controls[0].engine.known_identities().items() if found == a]

    def remotes() -> list[int]:
        resource = npds.NetworkPolicy.FromString(controls[1].loaded.resources[NETWORK_POLICY][0])
        return [n for r in resource.ingress_per_port_policies for n in r.rules[0].remote_policies]

    eventually(lambda: set(remotes()) == {of_a}, "the other node's identity is in the policy")
    gone = [stores[0]._id(of_a), stores[0]._labels(str(a))]
    ops = [etcd.DeleteRangeRequest(key=key) for key in gone]
    success = [etcd.RequestOp(request_delete_range=op) for op in ops]
    stores[0]._client.txn(etcd.TxnRequest(success=success))
    stores[1]._candidate = lambda: of_a  # type: ignore[method-assign]
    stores[1].numbers(CLUSTER, ["k8s:app=c"])
    stores[0]._client.revoke(stores[0]._lease)
    eventually(
        lambda: (
            controls[0].engine.policy(1).identity != of_a
            and set(remotes()) == {controls[0].engine.policy(1).identity}
        ),
        "a new number, on both nodes",
    )
    assert controls[1].engine.known_identities()[of_a] == labels("k8s:app=c")
    for store in stores:
        store.close()


def test_what_others_put_there_does_no_harm(server: Etcd) -> None:
    client = EtcdClient([server.address])
    for key, value in (
        (b"id/x", b"k8s:a=1"),
        (b"id/300", b"\xff"),
        (b"id/301", b"two labels with=spaces =x"),
        (b"use/\xff/\xff", b""),
        (b"labels/k8s:app=a", b"17"),
        (b"", b""),
    ):
        put = etcd.PutRequest(key=b"proxylib/identities/" + key, value=value)
        client.txn(etcd.TxnRequest(success=[etcd.RequestOp(request_put=put)]))
    client.close()
    with Node(server, "one") as one:
        assert one.seen.keys() <= {300}
        with pytest.raises(ConfigError, match="is not a number"):
            one.identities.acquire([labels("k8s:app=a")])
        assert one.identities.acquire([labels("k8s:app=b")])


def test_wrong_use() -> None:
    with pytest.raises(ConfigError, match="at least one endpoint"):
        EtcdStore([], "n")
    with pytest.raises(ConfigError, match="cannot be a node's name"):
        EtcdStore(["x"], "a/b")
    store = EtcdStore(["127.0.0.1:1"], "n")
    with pytest.raises(ConfigError, match="not for etcd"):
        store.numbers(LOCAL, ["cidr:x="])
    with pytest.raises(EtcdError, match=r"etcd at 127\.0\.0\.1:1: UNAVAILABLE"):
        store.start(lambda identities: None, lambda keys: None)
    store.close()
