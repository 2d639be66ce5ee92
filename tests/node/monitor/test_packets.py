"""Events of the programs, from their bytes to lines."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest

from bpf.events import Event, decode
from bpf.schema import EVENT, REASONS
from node.monitor.ends import Ends
from node.monitor.hub import Filter, Hub
from node.monitor.lines import line
from node.monitor.packets import publish
from xds.endpoints import Endpoint
from xds.engine import Change, Engine
from xds.labels import label_set, parse_label

CLIENT, SERVER, STRANGER = "10.0.0.1", "10.0.0.2", "192.0.2.7"


def endpoint(addresses: tuple[str, ...], label: str) -> Endpoint:
    return Endpoint(addresses, label_set([parse_label(label)]))


@pytest.fixture(scope="module")
def ends() -> Ends:
    engine = Engine()
    client = endpoint((CLIENT, "fd00::1"), "k8s:app=client")
    server = endpoint((SERVER, "fd00::2"), "k8s:app=server")
    engine.change(Change(endpoints={7: client, 9: server}))
    return Ends(engine)


def raw(text: str) -> bytes:
    packed = ipaddress.ip_address(text).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def event(kind: int, **more: Any) -> Event:
    """A SYN from the client to the server's port 80, as the client's program sees it."""
    fields = dict.fromkeys(EVENT.fields, 0) | {
        "type": kind,
        "protocol": 6,
        "tcp_flags": 2,
        "endpoint": 7,
        "ifindex": 12,
        "source_identity": 256,
        "destination_identity": 257,
        "length": 74,
        "source": CLIENT,
        "destination": SERVER,
        "source_port": 4242,
        "destination_port": 80,
        **more,
    }
    fields["source"], fields["destination"] = raw(fields["source"]), raw(fields["destination"])
    return decode(EVENT.pack(*fields.values()))


def shown(ends: Ends, *events: Event) -> list[dict[str, Any]]:
    hub = Hub()
    subscription = hub.subscribe(Filter(), lambda: None)
    publish(hub, ends, events)
    return [json.loads(text) for text in subscription.take()[0]]


def lines(ends: Ends, *events: Event, verbose: int = 0) -> list[str]:
    return [
        re.sub(r"flow 0x[0-9a-f]+", "flow 0x1", line(entry, verbose))
        for entry in shown(ends, *events)
    ]


def test_a_drop(ends: Ends) -> None:
    (entry,) = shown(ends, event(1, reason=133))
    assert re.fullmatch(r"20[0-9-]{8}T[0-9:]{8}\.[0-9]{6}Z", entry.pop("time"))
    assert re.fullmatch("0x[0-9a-f]+", entry.pop("flow"))
    assert entry == {
        "type": "drop",
        "reason": "Policy denied",
        "code": 133,
        "direction": "egress",
        "endpoint": 7,
        "ifindex": 12,
        "source": {
            "address": "10.0.0.1:4242",
            "endpoint": 7,
            "identity": 256,
            "labels": ["k8s:app=client"],
        },
        "destination": {
            "address": "10.0.0.2:80",
            "endpoint": 9,
            "identity": 257,
            "labels": ["k8s:app=server"],
        },
        "protocol": "tcp",
        "length": 74,
        "summary": "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN",
    }


def test_lines_of_drops(ends: Ends) -> None:
    dropped = event(1, reason=133)
    assert lines(ends, dropped) == [
        "xx drop (Policy denied) flow 0x1 to endpoint 9, identity 256->257: "
        "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN"
    ]
    assert lines(ends, dropped, verbose=1) == [
        "xx drop (Policy denied) flow 0x1 to endpoint 9, identity 256->257, "
        "from 7 ([k8s:app=client]) to 9 ([k8s:app=server]): "
        "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN"
    ]


def test_every_reason_has_words(ends: Ends) -> None:
    entries = shown(ends, *(event(1, reason=reason.number) for reason in REASONS))
    assert [entry["reason"] for entry in entries] == [reason.text for reason in REASONS]
    (unknown,) = shown(ends, event(1, reason=99))
    assert unknown["reason"] == "unknown reason 99"


def test_a_spoofed_source_is_told_by_whose_program_saw_it(ends: Ends) -> None:
    (entry,) = shown(ends, event(1, reason=132, source=SERVER, source_identity=0))
    assert entry["source"]["endpoint"] == 7
    assert entry["source"]["labels"] == ["k8s:app=client"]
    assert entry["source"]["address"] == "10.0.0.2:4242"


def test_identities_that_were_not_looked_up(ends: Ends) -> None:
    unknown = {"source_identity": 0, "destination_identity": 0}
    (entry,) = shown(ends, event(1, reason=134, destination=STRANGER, **unknown))
    assert entry["source"]["identity"] == 256
    assert entry["destination"]["identity"] == 0
    assert entry["destination"]["labels"] == ["reserved:unknown"]


@pytest.mark.parametrize(
    ("more", "summary"),
    [
        ({"tcp_flags": 0x12}, "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN, ACK"),
        ({"tcp_flags": 0}, "10.0.0.1:4242 -> 10.0.0.2:80 tcp"),
        ({"protocol": 17}, "10.0.0.1:4242 -> 10.0.0.2:80 udp"),
        ({"protocol": 1, "destination_port": 8}, "10.0.0.1 -> 10.0.0.2 icmp EchoRequest"),
        ({"protocol": 1, "destination_port": 42}, "10.0.0.1 -> 10.0.0.2 icmp 42"),
        ({"protocol": 47}, "10.0.0.1 -> 10.0.0.2 47"),
        (
            {"source": "fd00::1", "destination": "fd00::2"},
            "[fd00::1]:4242 -> [fd00::2]:80 tcp SYN",
        ),
        (
            {
                "source": "fd00::1",
                "destination": "fd00::2",
                "protocol": 58,
                "destination_port": 135,
            },
            "fd00::1 -> fd00::2 icmp6 NeighborSolicitation",
        ),
    ],
)
def test_summaries(ends: Ends, more: dict[str, Any], summary: str) -> None:
    (entry,) = shown(ends, event(1, reason=133, **more))
    assert entry["summary"] == summary
    assert (entry["source"]["endpoint"], entry["destination"]["endpoint"]) == (7, 9)


def test_traces(ends: Ends) -> None:
    reply = {
        "source": SERVER,
        "destination": CLIENT,
        "source_port": 80,
        "destination_port": 4242,
        "source_identity": 257,
        "destination_identity": 256,
        "direction": 1,
    }
    new = event(2, reason=1, proxy_port=10003, flags=8)
    told = lines(ends, new, event(2, reason=2, tcp_flags=0x12, **reply), event(2, reason=3))
    assert told == [
        "<- endpoint 7 flow 0x1 state new proxy port 10003 ifindex 12, identity 256->257: "
        "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN",
        "-> endpoint 7 flow 0x1 state reply ifindex 12, identity 257->256: "
        "10.0.0.2:80 -> 10.0.0.1:4242 tcp SYN, ACK",
        "<- endpoint 7 flow 0x1 state closed ifindex 12, identity 256->257: "
        "10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN",
    ]
    first, second = shown(ends, new, event(2, reason=2, **reply))
    assert first["flow"] == second["flow"]


@pytest.mark.parametrize(
    ("more", "action"),
    [
        ({"verdict": 1}, "allow"),
        ({"verdict": 0}, "deny"),
        ({"verdict": 3}, "deny"),
        ({"verdict": 1, "flags": 4}, "audit"),
        ({"verdict": 2, "proxy_port": 10001}, "redirect to proxy port 10001"),
    ],
)
def test_policy_verdicts(ends: Ends, more: dict[str, Any], action: str) -> None:
    egress = event(3, **more)
    ingress = event(3, endpoint=9, direction=1, **more)
    packet = "identity 256->257: 10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN"
    assert lines(ends, egress, ingress) == [
        f"Policy verdict log: flow 0x1 local EP ID 7, remote ID 257, proto tcp, egress, "
        f"action {action}, {packet}",
        f"Policy verdict log: flow 0x1 local EP ID 9, remote ID 256, proto tcp, ingress, "
        f"action {action}, {packet}",
    ]
