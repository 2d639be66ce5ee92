"""Real programs at real links, and what the monitor makes of what they report."""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf import maps
from bpf.datapath import Datapath, DatapathConfig, Link, PolicyEntry
from bpf.schema import U32, U64, Config, Flags
from demos.namespaces import Lab, Namespace
from node.agent.opening import TRACES
from node.monitor.ends import Ends
from node.monitor.hub import Filter, Subscription
from node.monitor.lines import line
from node.monitor.watch import Watch
from tests.native.services import wait_for
from xds.endpoints import Endpoint
from xds.engine import Change, Engine
from xds.labels import label_set, parse_label

CLIENT, SERVER = 1, 2
OPEN, CLOSED = 80, 81
EVENTS = 4096
"""Bytes of the ring buffer: about thirty events."""


@pytest.fixture(scope="module")
def lab(privileged: None) -> Iterator[Lab]:
    with Lab("client", "server") as found:
        yield found


@pytest.fixture
def datapath(lab: Lab, bpffs: Path, tmp_path: Path, cache: Path) -> Iterator[Datapath]:
    """The client may reach the server's port OPEN; who they are is known to `ends` too."""
    config = DatapathConfig(
        root=bpffs / "proxylib",
        cache=cache,
        state=tmp_path / "state",
        sizes={"events": EVENTS},
        netns=str(lab.node.path),
    )
    allow = [PolicyEntry(0, ingress, 0, 0, 0, 1, 1) for ingress in (False, True)]
    with closing(Datapath.open(config)) as opened:
        for number, end, identity in _ends(lab):
            opened.set_identities({end.ipv4: identity, end.ipv6: identity})
            opened.attach(Link(number, _outer(end), end.ipv4, end.ipv6, identity))
        opened.set_policy(CLIENT, allow)
        opened.set_policy(SERVER, [allow[0], PolicyEntry(256, True, 6, OPEN, 24, 1, 1)])
        yield opened
        for number in (CLIENT, SERVER):
            opened.detach(number)


@pytest.fixture
def watch(lab: Lab) -> Watch:
    engine = Engine()
    engine.change(
        Change(
            endpoints={
                number: Endpoint(
                    (end.ipv4, end.ipv6), label_set([parse_label(f"k8s:app={end.name}")])
                )
                for number, end, _ in _ends(lab)
            }
        )
    )
    return Watch(Ends(engine), traces=Flags.TRACE)


def _ends(lab: Lab) -> Iterator[tuple[int, Namespace, int]]:
    yield CLIENT, lab["client"], 256
    yield SERVER, lab["server"], 257


def _outer(end: Namespace) -> int:
    """The number of the node's end of a veth."""
    found = re.search(r"eth0@if(\d+)", end.run("ip", "-o", "link", "show", "eth0").stdout)
    assert found is not None
    return int(found[1])


@contextmanager
def watching(watch: Watch, *types: str) -> Iterator[Subscription]:
    subscription = watch.hub.subscribe(Filter(types=frozenset(types)), lambda: None)
    yield subscription
    watch.hub.unsubscribe(subscription)


class Seen:
    """What a subscription got, until now."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self.entries: list[dict[str, Any]] = []

    def closed(self) -> int:
        self.has(0)
        return len({e["endpoint"] for e in self.entries if e.get("state") == "closed"})

    def has(self, count: int) -> bool:
        self.entries += [json.loads(text) for text in self._subscription.take()[0]]
        return len(self.entries) >= count


def call(lab: Lab, port: int, host: str = "") -> bool:
    """Whether the client reaches the server's port."""
    host = host or lab["server"].ipv4
    with lab["server"].entered(), socket.create_server((lab["server"].ipv4, OPEN)) as server:
        with lab["client"].entered():
            try:
                socket.create_connection((host, port), 0.2).close()
            except TimeoutError:
                return False
        server.accept()[0].close()
        return True


def talk(lab: Lab, rounds: int) -> None:
    """So many times a byte there and one back, on one connection."""
    host = lab["server"].ipv4
    with lab["server"].entered(), socket.create_server((host, OPEN)) as server:
        with lab["client"].entered():
            client = socket.create_connection((host, OPEN), 10)
        accepted, _ = server.accept()
        with client, accepted:
            for _ in range(rounds):
                for one, other in ((client, accepted), (accepted, client)):
                    one.sendall(b"x")
                    assert other.recv(1) == b"x"


def flags(datapath: Datapath) -> int:
    """What the programs are told to report, read as anybody else would."""
    opened = maps.read_maps(datapath.config.folder)
    raw = opened["config"].get(U32.pack(Config.FLAGS))
    maps.close_maps(opened)
    assert raw is not None
    return int(U64.unpack(raw)[0])


def test_drops_have_both_ends_and_a_reason(lab: Lab, datapath: Datapath, watch: Watch) -> None:
    watch.opened(datapath)
    assert not call(lab, CLOSED)  # Before anybody watches.
    with watching(watch, "drop") as subscription:
        seen = Seen(subscription)
        assert not call(lab, CLOSED)
        wait_for(lambda: seen.has(1), "the drop")
        (entry,) = seen.entries
        client, server = lab["client"].ipv4, lab["server"].ipv4
        assert re.fullmatch(
            r"xx drop \(Policy denied\) flow 0x[0-9a-f]+ to endpoint 2, identity 256->257, "
            r"from 1 \(\[k8s:app=client\]\) to 2 \(\[k8s:app=server\]\): "
            rf"{client}:[0-9]+ -> {server}:81 tcp SYN",
            line(entry, 1),
        )
        assert flags(datapath) == Flags.NONE


def test_the_course_of_a_connection(lab: Lab, datapath: Datapath, watch: Watch) -> None:
    watch.opened(datapath)
    with watching(watch, "trace", "policy-verdict") as subscription:
        assert flags(datapath) == Flags.TRACE | Flags.POLICY_VERDICT
        seen = Seen(subscription)
        assert call(lab, OPEN)
        wait_for(lambda: seen.has(8), "the connection's course")
    told = [
        (entry["endpoint"], entry["direction"], entry.get("state") or entry.get("action"))
        for entry in seen.entries
    ]
    assert told[:6] == [
        (CLIENT, "egress", "allow"),
        (CLIENT, "egress", "new"),
        (SERVER, "ingress", "allow"),
        (SERVER, "ingress", "new"),
        (SERVER, "egress", "reply"),
        (CLIENT, "ingress", "reply"),
    ]
    assert {(number, what) for number, _, what in told[6:]} == {
        (CLIENT, "closed"),
        (SERVER, "closed"),
    }
    assert len({entry["flow"] for entry in seen.entries}) == 1
    assert flags(datapath) == Flags.NONE


def test_aggregation_maximum_reports_no_course(lab: Lab, datapath: Datapath, watch: Watch) -> None:
    quiet = Watch(watch._ends, traces=TRACES["maximum"], always=Flags.ACCOUNTING)
    quiet.opened(datapath)
    with watching(quiet, "trace", "drop") as subscription:
        assert flags(datapath) == Flags.ACCOUNTING
        seen = Seen(subscription)
        assert call(lab, OPEN)
        assert not call(lab, CLOSED)
        wait_for(lambda: seen.has(1), "the drop")
        assert {entry["type"] for entry in seen.entries} == {"drop"}


@pytest.mark.parametrize(("level", "extra"), [("none", 8), ("low", 4), ("medium", 0)])
def test_a_long_connection_at_each_level(
    lab: Lab, datapath: Datapath, watch: Watch, level: str, extra: int
) -> None:
    """Two requests and replies more are told as packets, or not at all."""
    watcher = Watch(watch._ends, traces=TRACES[level])
    watcher.opened(datapath)

    def course(rounds: int) -> list[dict[str, Any]]:
        with watching(watcher, "trace") as subscription:
            seen = Seen(subscription)
            talk(lab, rounds)
            wait_for(lambda: seen.closed() == 2, "both ends")
        return seen.entries

    told = course(3)
    short, long = (Counter(entry["state"] for entry in some) for some in (course(1), told))
    assert short["new"] == long["new"] == 2
    assert short["reply"] == long["reply"] == 2
    assert long["established"] - short["established"] >= extra
    assert bool(long["established"]) is bool(extra)
    if level == "low":
        assert {e["direction"] for e in told if e["state"] == "established"} == {"ingress"}


def test_the_data_path_may_come_later(lab: Lab, datapath: Datapath, watch: Watch) -> None:
    with watching(watch, "policy-verdict") as subscription:
        watch.opened(datapath)
        assert flags(datapath) == Flags.POLICY_VERDICT
        seen = Seen(subscription)
        assert not call(lab, CLOSED)
        wait_for(lambda: seen.has(2), "the verdicts")
        assert [entry["action"] for entry in seen.entries] == ["allow", "deny"]
        watch.closed()


def test_what_a_full_ring_buffer_loses_is_told(lab: Lab, datapath: Datapath, watch: Watch) -> None:
    watch.opened(datapath)
    many = 2000
    filter_ = Filter(types=frozenset({"drop"}))
    # Whoever reads the ring buffer is held up, for once.
    naps = iter([0.5])
    subscription = watch.hub.subscribe(filter_, lambda: time.sleep(next(naps, 0)))
    with lab["client"].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(many):
            sender.sendto(b"x", (lab["server"].ipv4, CLOSED))
    seen = Seen(subscription)

    def complete() -> bool:
        watch.tick()
        seen.has(0)
        return drops() + lost() >= many

    def drops() -> int:
        return sum(entry["type"] == "drop" for entry in seen.entries)

    def lost() -> int:
        return sum(entry["count"] for entry in seen.entries if entry["type"] == "lost")

    wait_for(complete, "everything to be told")
    assert drops() + lost() == many
    assert lost() > 0
    assert {e["from"] for e in seen.entries if e["type"] == "lost"} == {"events"}
    watch.hub.unsubscribe(subscription)
