"""What the programs tell: drops, verdicts, the course of a connection; and what gets lost."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from bpf import schema
from bpf.schema import EventFlags, EventType, Flags, TracePoint
from tests.bpf.datapath.conftest import (
    BOTH_PROXY,
    CLIENT,
    EGRESS_PROXY,
    INGRESS_PROXY,
    PORT,
    SERVER,
)
from tests.bpf.datapath.frames import ethernet, ipv4, tcp
from tests.bpf.datapath.hosts import RunningProxy, Talk, connects, eventually
from tests.bpf.datapath.plane import (
    EGRESS,
    INGRESS,
    NONE,
    OPEN,
    REASONS,
    REDIRECT,
    TCP,
    WORLD,
    Entry,
    Plane,
    mapped,
    run_program,
)


@pytest.fixture
def told(plane: Plane) -> Iterator[Plane]:
    """A plane that tells all that it can."""
    plane.config(schema.Config.FLAGS, Flags.TRACE | Flags.POLICY_VERDICT | Flags.ACCOUNTING)
    yield plane
    plane.config(schema.Config.FLAGS, 0)


def kinds(events: list[dict[str, int | bytes]], kind: EventType) -> list[dict[str, int | bytes]]:
    return [event for event in events if event["type"] == kind]


def test_a_drop(plane: Plane) -> None:
    plane.policy("server", Entry(EGRESS))
    assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
    (event,) = plane.events()
    assert event["type"] == EventType.DROP
    assert event["reason"] == REASONS["POLICY"]
    assert event["direction"] == INGRESS
    assert event["endpoint"] == plane.numbers["server"]
    node = plane.lab.node
    assert event["ifindex"] == node.ifindex(plane.lab["server"].interface)
    assert (event["source_identity"], event["destination_identity"]) == (CLIENT, SERVER)
    assert event["source"] == mapped(plane.lab["client"].ipv4)
    assert event["destination"] == mapped(plane.lab["server"].ipv4)
    assert (event["protocol"], event["tcp_flags"]) == (TCP, 2)
    assert event["destination_port"] == PORT
    assert event["flags"] == 0
    assert event["length"] == 74


def test_a_drop_of_what_is_no_packet(plane: Plane) -> None:
    node = plane.lab.node
    index = node.ifindex(plane.lab["client"].interface)
    run_program(plane.from_endpoint, ethernet(bytes(60), 0x88CC), index, str(node.path))
    (event,) = plane.events()
    assert event["reason"] == REASONS["UNSUPPORTED_L3"]
    assert (event["source_identity"], event["destination_identity"]) == (CLIENT, 0)
    assert (event["source"], event["length"]) == (bytes(16), 74)


def test_verdicts_are_told_once(told: Plane) -> None:
    """Once for each end that judges, however many packets follow."""
    told.policy("client", Entry(INGRESS), Entry(EGRESS, would=NONE))
    with Talk(told.lab["client"], told.lab["server"].ipv6, PORT) as talk:
        talk.echo(b"x" * 10_000)
        found = kinds(told.events(), EventType.POLICY_VERDICT)
        assert [(e["endpoint"], e["direction"]) for e in found] == [
            (told.numbers["client"], EGRESS),
            (told.numbers["server"], INGRESS),
        ]
        assert [(e["verdict"], e["would"]) for e in found] == [(1, 0), (1, 1)]
        flags = EventFlags.IPV6
        assert [e["flags"] for e in found] == [flags | EventFlags.AUDIT, flags]
        assert all(e["source_identity"] == CLIENT for e in found)
        assert all(e["destination_identity"] == SERVER for e in found)
        # Judged again, by each end once.
        told.bump()
        talk.echo(b"x" * 10_000)
        assert len(kinds(told.events(), EventType.POLICY_VERDICT)) == 2


def test_one_pass_tells_both_verdicts(told: Plane, taken: list[RunningProxy]) -> None:
    redirect = Entry(EGRESS, 0, TCP, PORT, REDIRECT, proxy=EGRESS_PROXY, both=BOTH_PROXY)
    told.policy("client", *OPEN, redirect)
    told.policy("server", *OPEN, redirect._replace(direction=INGRESS, proxy=INGRESS_PROXY))
    with Talk(told.lab["client"], told.lab["server"].ipv4, PORT):
        found = kinds(told.events(), EventType.POLICY_VERDICT)
    verdicts = [(e["endpoint"], e["direction"], e["verdict"], e["proxy_port"]) for e in found]
    # On a busy machine the first packet comes twice.
    assert [*dict.fromkeys(verdicts)] == [
        (told.numbers["client"], EGRESS, REDIRECT, EGRESS_PROXY),
        (told.numbers["server"], INGRESS, REDIRECT, INGRESS_PROXY),
    ]


def test_the_course_of_a_connection(told: Plane) -> None:
    """Three traces, not one for each packet."""
    talk = Talk(told.lab["client"], told.lab["server"].ipv4, PORT)
    talk.echo(b"x" * 100_000)
    talk.close(gently=True)
    found: list[dict[str, int | bytes]] = []

    def points() -> list[tuple[int | bytes, int | bytes]]:
        found.extend(kinds(told.events(), EventType.TRACE))
        number = told.numbers["client"]
        return [(e["reason"], e["flags"]) for e in found if e["endpoint"] == number]

    eventually(lambda: len(points()) == 3)
    told_of = points()
    assert told_of[0] == (TracePoint.NEW, 0)
    assert told_of[1] == (TracePoint.REPLY, EventFlags.REPLY)
    assert told_of[2][0] == TracePoint.CLOSED


def test_connections_are_accounted_where_asked_for(told: Plane) -> None:
    with Talk(told.lab["client"], told.lab["server"].ipv4, PORT) as talk:
        talk.echo(b"x" * 50_000)
        (entry,) = [value for key, value in told.conntrack().items() if key[0] == "client"]
        assert entry["tx_bytes"] > 50_000
        assert entry["rx_bytes"] > 50_000
        assert entry["tx_packets"] > 2
        told.config(schema.Config.FLAGS, 0)
        talk.echo(b"x" * 50_000)
        (after,) = [value for key, value in told.conntrack().items() if key[0] == "client"]
        assert after["tx_bytes"] == entry["tx_bytes"]


def test_a_full_ring_is_counted_and_drops_nothing_else(plane: Plane) -> None:
    node = plane.lab.node
    index = node.ifindex(plane.lab["client"].interface)
    frame = ethernet(ipv4("10.1.0.3", "10.1.0.2", TCP, tcp(1, 2)))
    for _ in range(4000):
        run_program(plane.from_endpoint, frame, index, str(node.path))
    found = plane.counters()
    events = plane.events()
    assert found["client", EGRESS, "INVALID_SOURCE"] == 4000
    assert found["client", EGRESS, "EVENTS_LOST"] == 4000 - len(events) > 0
    assert connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)


def test_a_full_table_closes(plane: Plane) -> None:
    """The policy map is asked as it is: what did not fit is not allowed, nor passed."""
    small = Plane(plane.lab, plane.cache, sizes={"policy": 2})
    try:
        small.attach(plane.lab["client"], CLIENT)
        with pytest.raises(OSError, match="No space"):
            small.policy("client", *OPEN, Entry(EGRESS, SERVER, TCP, PORT))
        assert not connects(plane.lab["client"], plane.lab["server"].ipv4, PORT)
        assert small.drops() == {"POLICY": 1}
    finally:
        plane.attach(plane.lab["client"], CLIENT)
        small.close()


def test_an_unknown_address_is_the_worlds(told: Plane) -> None:
    told.policy("client", Entry(INGRESS), Entry(EGRESS, WORLD))
    assert connects(told.lab["client"], told.lab.outside.ipv4, PORT)
    told.identify({"192.0.2.0/24": 16777217})
    assert not connects(told.lab["client"], told.lab.outside.ipv4, PORT)
    told.identify({f"{told.lab.outside.ipv4}/32": WORLD})
    assert connects(told.lab["client"], told.lab.outside.ipv4, PORT), "the longest prefix"
    (dropped,) = kinds(told.events(), EventType.DROP)
    assert dropped["destination_identity"] == 16777217
    assert ip_address(bytes(dropped["destination"])).ipv4_mapped is not None  # type: ignore[union-attr,arg-type]
