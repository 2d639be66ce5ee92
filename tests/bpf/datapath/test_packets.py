"""Packets of every kind, as a raw socket may send them: none passes unjudged."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter

import pytest

from tests.bpf.datapath import frames
from tests.bpf.datapath.conftest import BOTH_PROXY, EGRESS_PROXY, PORT, host
from tests.bpf.datapath.frames import ARP, IPV4, IPV6, QINQ, SYN, VLAN, ethernet, ipv4, ipv6
from tests.bpf.datapath.hosts import RunningProxy, Talk, eventually, raw_socket
from tests.bpf.datapath.plane import (
    EGRESS,
    ICMP,
    ICMPV6,
    INGRESS,
    OPEN,
    REDIRECT,
    TCP,
    UDP,
    Entry,
    Plane,
    run_program,
)

PASSED, DROPPED = 0, 2
CLIENT4, SERVER4, OUTSIDE4, NODE4 = "10.1.0.2", "10.1.0.3", "192.0.2.2", "10.1.0.1"
CLIENT6, SERVER6, OUTSIDE6 = "fd10:1::2", "fd10:1::3", "fd20::2"
LINK_LOCAL = "fe80::ff:fe00:102"
TCP_SYN = frames.tcp(40000, PORT)
MORE = 0x2000


def v4(payload: bytes = TCP_SYN, protocol: int = TCP, **fields: object) -> bytes:
    source = str(fields.pop("source", CLIENT4))
    destination = str(fields.pop("destination", SERVER4))
    return ethernet(ipv4(source, destination, protocol, payload, **fields))  # type: ignore[arg-type]


def v6(payload: bytes = TCP_SYN, following: int = TCP, **fields: object) -> bytes:
    source = str(fields.pop("source", CLIENT6))
    destination = str(fields.pop("destination", SERVER6))
    return ethernet(ipv6(source, destination, following, payload, **fields), IPV6)  # type: ignore[arg-type]


def discovery(kind: int, *, hops: int = 255, to: str = "ff02::1:ff00:1", **fields: object) -> bytes:
    return v6(frames.icmp(kind), ICMPV6, hops=hops, destination=to, **fields)


HOP, ROUTING, FRAGMENT, AH, OPTIONS = 0, 43, 44, 51, 60
SEGMENTS_LEFT = b"\0\1" + bytes(4)
AUTHENTICATION = struct.pack("!BBHII", TCP, 1, 0, 1, 1)


def chain(count: int) -> bytes:
    """So many destination options, and TCP."""
    made = TCP_SYN
    for n in range(count):
        made = frames.extension(OPTIONS if n else TCP) + made
    return made


FROM_CLIENT: dict[str, tuple[bytes, str]] = {
    "tcp": (v4(), "FORWARDED"),
    "udp": (v4(frames.udp(40000, PORT), UDP), "FORWARDED"),
    "icmp": (v4(frames.icmp(8), ICMP), "FORWARDED"),
    "padding behind": (v4() + bytes(20), "FORWARDED"),
    "other protocol": (v4(b"gre?", 47), "FORWARDED"),
    "sctp": (v4(frames.tcp(1, 2), 132), "FORWARDED"),
    "arp": (ethernet(bytes(28), ARP), "FORWARDED"),
    "nothing": (ethernet(b""), "INVALID"),
    "half a header": (v4()[:24], "INVALID"),
    "one byte short": (v4(b"")[:33], "INVALID"),
    "version 5": (v4(version=5), "INVALID"),
    "version 6 as ipv4": (v4(version=6), "INVALID"),
    "header of 16 bytes": (v4(ihl=4), "INVALID"),
    "header of none": (v4(ihl=0), "INVALID"),
    "header longer than packet": (v4(b"", ihl=15), "INVALID"),
    "total longer than frame": (v4(length=1000), "INVALID"),
    "total of 65535": (v4(length=0xFFFF), "INVALID"),
    "total shorter than header": (v4(length=19), "INVALID"),
    "total of none": (v4(length=0), "INVALID"),
    "tcp cut by total": (v4(length=39), "CT_INVALID_HEADER"),
    "tcp of none": (v4(b""), "CT_INVALID_HEADER"),
    "tcp offset too small": (v4(frames.tcp(1, 2, offset=4)), "CT_INVALID_HEADER"),
    "tcp offset beyond": (v4(frames.tcp(1, 2, offset=6)), "CT_INVALID_HEADER"),
    "udp cut": (v4(frames.udp(1, 2)[:7], UDP), "CT_INVALID_HEADER"),
    "udp length of 7": (v4(frames.udp(1, 2, length=7), UDP), "CT_INVALID_HEADER"),
    "udp length of none": (v4(frames.udp(1, 2, length=0), UDP), "CT_INVALID_HEADER"),
    "udp longer than packet": (v4(frames.udp(1, 2, length=9), UDP), "CT_INVALID_HEADER"),
    "icmp cut": (v4(frames.icmp(8)[:7], ICMP), "CT_INVALID_HEADER"),
    "sctp cut": (v4(bytes(11), 132), "CT_INVALID_HEADER"),
    "another endpoint's address": (v4(source=SERVER4, destination=CLIENT4), "INVALID_SOURCE"),
    "the node's address": (v4(source=NODE4), "INVALID_SOURCE"),
    "outside's address": (v4(source=OUTSIDE4), "INVALID_SOURCE"),
    "no address": (v4(source="0.0.0.0"), "INVALID_SOURCE"),
    "loopback": (v4(source="127.0.0.1"), "INVALID_SOURCE"),
    "multicast source": (v4(source="224.0.0.1"), "INVALID_SOURCE"),
    "options": (v4(options=b"\x94\x04\0\0\1\1\1\0"), "FORWARDED"),
    "forty bytes of options": (v4(options=b"\1" * 40), "FORWARDED"),
    "loose source route": (v4(options=b"\x83\x07\x04" + bytes(5)), "SOURCE_ROUTE"),
    "strict source route": (v4(options=b"\1" * 36 + b"\1\x89\x03\x04"), "SOURCE_ROUTE"),
    "tiny first fragment": (v4(TCP_SYN[:8], fragment=MORE), "CT_INVALID_HEADER"),
    "fragment over the flags": (v4(TCP_SYN, fragment=1), "INVALID"),
    "fragment without a first": (v4(bytes(8), fragment=100, number=99), "FRAGMENT_NOT_FOUND"),
    "vlan": (ethernet(b"\0\1" + struct.pack("!H", IPV4) + v4()[14:], VLAN), "VLAN"),
    "vlan 0": (ethernet(b"\0\0" + struct.pack("!H", IPV4) + v4()[14:], VLAN), "VLAN"),
    "vlan in vlan": (ethernet(b"\0\1\x81\0\0\2\x08\0" + v4()[14:], QINQ), "VLAN"),
    "802.3": (ethernet(v4()[14:], 0x100), "UNSUPPORTED_L2"),
    "mpls": (ethernet(v4()[14:], 0x8847), "UNSUPPORTED_L3"),
    "lldp": (ethernet(bytes(60), 0x88CC), "UNSUPPORTED_L3"),
    "ipv4 called ipv6": (ethernet(v4()[14:] + bytes(40), IPV6), "INVALID"),
    "tcp over ipv6": (v6(), "FORWARDED"),
    "udp over ipv6": (v6(frames.udp(40000, PORT), UDP), "FORWARDED"),
    "icmpv6": (v6(frames.icmp(128), ICMPV6), "FORWARDED"),
    "ipv6: half a header": (v6()[:40], "INVALID"),
    "ipv6: version 4": (v6(version=4), "INVALID"),
    "ipv6: longer than frame": (v6(length=100), "INVALID"),
    "ipv6: of none": (v6(length=0), "CT_INVALID_HEADER"),
    "ipv6: tcp cut by length": (v6(length=19), "CT_INVALID_HEADER"),
    "ipv4 in ipv6: source": (v6(source="::ffff:10.1.0.2"), "INVALID"),
    "ipv4 in ipv6: destination": (v6(destination="::ffff:10.1.0.3"), "INVALID"),
    "ipv6: another's address": (v6(source=SERVER6, destination=CLIENT6), "INVALID_SOURCE"),
    "ipv6: no address": (v6(source="::"), "INVALID_SOURCE"),
    "ipv6: link-local address": (v6(source=LINK_LOCAL), "INVALID_SOURCE"),
    "destination options": (v6(chain(1), OPTIONS), "FORWARDED"),
    "six headers": (v6(chain(6), OPTIONS), "FORWARDED"),
    "seven headers": (v6(chain(7), OPTIONS), "INVALID_EXTENSION_HEADER"),
    "hop-by-hop": (v6(frames.extension(TCP) + TCP_SYN, HOP), "FORWARDED"),
    "hop-by-hop that is not first": (
        v6(frames.extension(HOP) + frames.extension(TCP) + TCP_SYN, OPTIONS),
        "INVALID_EXTENSION_HEADER",
    ),
    "extension cut": (v6(b"\x06\0\0", OPTIONS), "INVALID_EXTENSION_HEADER"),
    "extension longer than packet": (
        v6(b"\x06\xff" + bytes(30), OPTIONS),
        "INVALID_EXTENSION_HEADER",
    ),
    "extension to itself": (v6(b"\x3c\0" * 60, OPTIONS), "INVALID_EXTENSION_HEADER"),
    "authentication": (v6(AUTHENTICATION + TCP_SYN, AH), "FORWARDED"),
    "routing, arrived": (v6(frames.extension(TCP, bytes(6)) + TCP_SYN, ROUTING), "FORWARDED"),
    "routing on": (v6(frames.extension(TCP, SEGMENTS_LEFT) + TCP_SYN, ROUTING), "SOURCE_ROUTE"),
    "no next header": (v6(b"", 59), "FORWARDED"),
    "two fragment headers": (
        v6(
            frames.fragment_header(FRAGMENT, 0, True)
            + frames.fragment_header(TCP, 0, True)
            + TCP_SYN,
            FRAGMENT,
        ),
        "INVALID_EXTENSION_HEADER",
    ),
    "ipv6: tiny first fragment": (
        v6(frames.fragment_header(TCP, 0, True) + TCP_SYN[:8], FRAGMENT),
        "CT_INVALID_HEADER",
    ),
    "ipv6: fragment without a first": (
        v6(frames.fragment_header(TCP, 9, False, 99) + bytes(8), FRAGMENT),
        "FRAGMENT_NOT_FOUND",
    ),
    "ipv6: fragment over the flags": (
        v6(frames.fragment_header(TCP, 1, False) + TCP_SYN, FRAGMENT),
        "INVALID",
    ),
    "neighbour solicitation": (discovery(135, source=LINK_LOCAL), "FORWARDED"),
    "address detection": (discovery(135, source="::"), "FORWARDED"),
    "router solicitation": (discovery(133, source=LINK_LOCAL, to="ff02::2"), "FORWARDED"),
    "multicast report": (discovery(143, hops=1, source="::", to="ff02::16"), "FORWARDED"),
    "router advertisement": (discovery(134, source=LINK_LOCAL), "ICMPV6_FORBIDDEN"),
    "redirect": (discovery(137, source=LINK_LOCAL), "ICMPV6_FORBIDDEN"),
    "multicast query": (discovery(130, source=LINK_LOCAL), "ICMPV6_FORBIDDEN"),
    "neighbour from afar": (discovery(136, hops=254, source=CLIENT6), "ICMPV6_FORBIDDEN"),
    "neighbour with another's address": (discovery(136, source=SERVER6), "INVALID_SOURCE"),
    "multicast report to one": (discovery(143, source="::", to=SERVER6), "ICMPV6_FORBIDDEN"),
}


def judged(plane: Plane, frame: bytes, direction: int = EGRESS, name: str = "client") -> int:
    """What the program says to a frame: `PASSED` or `DROPPED`."""
    program = plane.from_endpoint if direction == EGRESS else plane.to_endpoint
    node = plane.lab.node
    return run_program(program, frame, node.ifindex(plane.lab[name].interface), str(node.path))


def is_whole(frame: bytes) -> bool:
    """True for what the kernel runs a program on by itself: it has an IP header's length."""
    least = {b"\x08\0": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)
    return len(frame) >= least


@pytest.mark.parametrize("what", [w for w, (frame, _) in FROM_CLIENT.items() if is_whole(frame)])
def test_from_an_endpoint(plane: Plane, what: str) -> None:
    frame, reason = FROM_CLIENT[what]
    assert judged(plane, frame) == (PASSED if reason == "FORWARDED" else DROPPED)
    assert plane.counters() == {("client", EGRESS, reason): 1}


def test_sent_by_a_raw_socket(plane: Plane) -> None:
    """The same frames on a wire; there, the kernel takes a VLAN's tag out of the frame first."""
    before = plane.counters()
    client = plane.lab["client"]
    with raw_socket(client) as wire:
        for frame, _ in FROM_CLIENT.values():
            gateway = bytes.fromhex(client.gateway_mac.replace(":", ""))
            wire.send(gateway + frame[6:])
    expected = Counter(reason for _, reason in FROM_CLIENT.values() if reason != "FORWARDED")
    eventually(lambda: plane.counters()["client", EGRESS, "VLAN"] == 3)
    found = plane.counters() - before
    told = {
        reason: n for (name, way, reason), n in found.items() if (name, way) == ("client", EGRESS)
    }
    # Its kernel speaks, too: neighbours, resets.
    assert told.pop("FORWARDED") >= len(FROM_CLIENT) - expected.total()
    assert told == expected


def test_without_an_address(plane: Plane) -> None:
    """An endpoint that has none of a family sends nothing of it."""
    from bpf import schema

    key = schema.U32.pack(plane.lab.node.ifindex(plane.lab["client"].interface))
    before = plane.maps["links"].get(key)
    assert before is not None
    plane.maps["links"].set(key, schema.LINK.pack(1, 0, bytes(16), bytes(16)))
    try:
        for frame in (v4(), v6(), v6(source="::"), v4(source="0.0.0.0")):
            assert judged(plane, frame) == DROPPED
        assert judged(plane, discovery(135, source=LINK_LOCAL)) == PASSED
        assert plane.drops() == {"INVALID_SOURCE": 4}
    finally:
        plane.maps["links"].set(key, before)


def test_to_an_endpoint(plane: Plane) -> None:
    """Only what is for its own address; neighbours only from the node itself."""

    def passes(frame: bytes) -> bool:
        return judged(plane, frame, INGRESS) == PASSED

    to = {"source": OUTSIDE4, "destination": CLIENT4}
    assert passes(v4(**to))
    assert not passes(v4(source=OUTSIDE4, destination=SERVER4))
    assert not passes(v4(source=OUTSIDE4, destination="224.0.0.1"))
    assert not passes(v4(source=OUTSIDE4, destination="255.255.255.255"))
    assert plane.drops() == {"UNKNOWN_TARGET": 3}
    assert passes(discovery(136, to=CLIENT6, source="fe80::1"))
    assert passes(discovery(134, to="ff02::1", source="fe80::1"))
    assert not passes(discovery(136, to=CLIENT6, source=SERVER6, hops=254))
    assert plane.drops()["ICMPV6_FORBIDDEN"] == 1
    malformed = {"INVALID", "CT_INVALID_HEADER", "VLAN", "SOURCE_ROUTE"}
    for what, (frame, reason) in FROM_CLIENT.items():
        if reason in malformed and is_whole(frame):
            assert not passes(frame), what


def test_an_interface_that_is_no_endpoint(plane: Plane) -> None:
    node = plane.lab.node
    ran = run_program(plane.from_endpoint, v4(), node.ifindex("ext0"), str(node.path))
    assert ran == DROPPED
    assert plane.counters() == {("", EGRESS, "NO_ENDPOINT"): 1}


def first_and_later(protocol: int, payload: bytes, ipv6_too: bool) -> list[bytes]:
    """A datagram in two pieces; its later one has no ports."""
    first, later = payload[:24], payload[24:]
    if ipv6_too:
        return [
            v6(frames.fragment_header(protocol, 0, True) + first, FRAGMENT),
            v6(frames.fragment_header(protocol, 3, False) + later, FRAGMENT),
        ]
    return [v4(first, protocol, fragment=MORE), v4(later, protocol, fragment=3)]


@pytest.mark.parametrize("ipv6_too", [False, True], ids=["ipv4", "ipv6"])
def test_fragments_are_judged_by_their_first(plane: Plane, ipv6_too: bool) -> None:
    allowed = first_and_later(UDP, frames.udp(40000, PORT, bytes(40)), ipv6_too)
    plane.policy("client", Entry(EGRESS, 0, UDP, PORT))
    assert judged(plane, allowed[1]) == DROPPED, "its first has not come"
    assert [judged(plane, one) for one in allowed] == [PASSED, PASSED]
    plane.policy("client", Entry(EGRESS, 0, UDP, PORT + 1))
    assert [judged(plane, one) for one in allowed] == [DROPPED, DROPPED]
    assert plane.drops() == {"FRAGMENT_NOT_FOUND": 1, "POLICY": 2}
    redirect = Entry(EGRESS, 0, UDP, PORT, REDIRECT, proxy=EGRESS_PROXY, both=BOTH_PROXY)
    plane.policy("client", redirect)
    assert [judged(plane, one) for one in allowed] == [DROPPED, DROPPED]
    assert plane.drops()["FRAGMENTS_UNSUPPORTED"] == 2


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_datagrams_larger_than_the_mtu(plane: Plane, version: str) -> None:
    """Fragments of the kernel's own, both ways, where only this port is allowed."""
    from tests.bpf.datapath.hosts import datagram

    plane.policy("client", Entry(EGRESS, 0, UDP, PORT))
    plane.policy("server", Entry(INGRESS, 0, UDP, PORT))
    address = getattr(plane.lab["server"], version)
    answer = datagram(plane.lab["client"], address, PORT, b"x" * 5000, timeout=5)
    assert answer is not None
    assert answer.endswith(b"\n" + b"x" * 5000)
    assert plane.drops() == {}


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_echo(plane: Plane, version: str) -> None:
    """Asked where the type is allowed; answered without being allowed; in pieces, too."""
    asks, protocol = (128, ICMPV6) if version == "ipv6" else (8, ICMP)
    client, server = plane.lab["client"], plane.lab["server"]

    def ping(source: str, target: str, size: int, number: int) -> bool:
        sender, address = host(plane, source), getattr(host(plane, target), version)
        kind = socket.AF_INET6 if version == "ipv6" else socket.AF_INET
        with sender.entered():
            made = socket.socket(kind, socket.SOCK_RAW, protocol)
        with made:
            made.settimeout(0.3)
            made.connect((address, 0))
            made.send(frames.icmp(asks, number=number, data=b"x" * size))
            while True:
                try:
                    got = made.recv(1 << 16)
                except TimeoutError:
                    return False
                got = got if version == "ipv6" else got[20:]
                if got[0] == (129 if version == "ipv6" else 0) and got[4:6] == struct.pack(
                    "!H", number
                ):
                    return len(got) == 8 + size

    plane.policy("client", Entry(EGRESS, 0, protocol, asks))
    plane.policy("server", Entry(INGRESS, 0, protocol, asks))
    assert ping("client", "server", 56, 100)
    assert ping("client", "server", 5000, 101)
    assert not ping("server", "client", 56, 102)
    assert ping("node", "server", 56, 103)
    plane.policy("server", Entry(INGRESS, 0, protocol, asks + 5))
    assert not ping("client", "server", 56, 104)
    assert plane.drops() == {"POLICY": 2}
    assert {client.name, server.name} == {name for name, *_ in plane.conntrack()}


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_errors_about_a_connection_belong_to_it(plane: Plane, version: str) -> None:
    """A closed port's error reaches the one who asked, though nobody may speak to it."""
    plane.policy("client", Entry(EGRESS, 0, UDP))
    plane.policy("server", Entry(INGRESS, 0, UDP))
    address = getattr(plane.lab["server"], version)
    kind = socket.AF_INET6 if version == "ipv6" else socket.AF_INET
    with plane.lab["client"].entered():
        made = socket.socket(kind, socket.SOCK_DGRAM)
    with made:
        made.settimeout(5)
        made.connect((address, 9))
        made.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            made.recv(1)
    assert plane.drops() == {}


def test_errors_about_nothing_known_are_judged(plane: Plane) -> None:
    """Also those that quote what has been sent by another, or to another."""
    plane.policy("client", Entry(EGRESS, 0, TCP))
    assert judged(plane, v4()) == PASSED
    sent = v4()[14:]
    unreachable = frames.icmp(3, 3, 0, sent[:28], 0)

    def passes(source: str, quoted: bytes, kind: int = 3) -> bool:
        error = frames.icmp(kind, 3, 0, quoted, 0)
        return judged(plane, v4(error, ICMP, source=source, destination=CLIENT4), INGRESS) == PASSED

    plane.policy("client", Entry(EGRESS, 0, TCP))
    assert not passes(SERVER4, sent[:28]), "of a policy that is not in force any more"
    assert judged(plane, v4()) == PASSED
    assert passes(SERVER4, sent[:28])
    assert passes("192.0.2.77", sent[:28]), "a router's"
    assert passes(SERVER4, sent[:28], 11)
    assert not passes(SERVER4, sent[:27]), "cut"
    assert not passes(SERVER4, sent[:28], 5), "a redirect"
    other = v4(frames.tcp(40001, PORT))[14:]
    assert not passes(SERVER4, other[:28]), "another connection"
    assert not passes(SERVER4, v4(source=SERVER4, destination=CLIENT4)[14:][:28])
    # The endpoint cannot send errors to whom it likes, about what it has sent itself.
    outgoing = v4(unreachable, ICMP, destination=OUTSIDE4)
    assert judged(plane, outgoing) == DROPPED


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_smaller_mtu_on_the_way(plane: Plane, version: str) -> None:
    """The node's "too big" is for the client, though nobody may speak to it."""
    plane.policy("client", Entry(EGRESS))
    plane.lab.node.ip("link set ext0 mtu 1300")
    plane.lab.outside.ip("link set eth0 mtu 1300")
    try:
        with Talk(plane.lab["client"], getattr(plane.lab.outside, version), PORT) as talk:
            assert talk.echo(b"x" * 300_000) == b"x" * 300_000
        assert plane.drops() == {}
    finally:
        plane.lab.node.ip("link set ext0 mtu 1500")
        plane.lab.outside.ip("link set eth0 mtu 1500")


def test_too_big_for_the_proxy_reaches_the_proxy(plane: Plane, taken: list[RunningProxy]) -> None:
    """An error about what the proxy has sent with the client's address is the proxy's."""
    redirect = Entry(EGRESS, 0, TCP, PORT, REDIRECT, proxy=EGRESS_PROXY)
    plane.policy("client", redirect)
    outside = plane.lab.outside
    with raw_socket(outside) as wire, Talk(plane.lab["client"], outside.ipv4, PORT) as talk:
        assert talk.echo(b"x" * 10) == b"x" * 10
        wire.settimeout(0.2)
        node = sent = b""
        while True:
            try:
                frame = wire.recv(2000)
            except TimeoutError:
                break
            if (
                frame[12:14] == b"\x08\0"
                and frame[23] == TCP
                and frame[36:38] == struct.pack("!H", PORT)
            ):
                node, sent = frame[6:12], frame[14:]
        # What it would send next, as its sequence number says.
        (number,) = struct.unpack_from("!I", sent, 24)
        length = struct.unpack_from("!H", sent, 2)[0] - 20 - (sent[32] >> 4) * 4
        quoted = sent[:24] + struct.pack("!I", (number + length) & 0xFFFFFFFF)
        error = frames.icmp(3, 4, 0, quoted, 1280)
        wire.send(ethernet(ipv4(outside.ipv4, CLIENT4, ICMP, error), to=node))
        port = struct.unpack_from("!H", sent, 20)[0]

        def learned() -> bool:
            told = plane.lab.node.run("ss", "-tniH", "sport", "=", f":{port}").stdout
            return "pmtu:1280" in told

        eventually(learned)
        assert talk.echo(b"x" * 100_000) == b"x" * 100_000
    assert plane.drops() == {}


@pytest.mark.parametrize("redirected", [False, True], ids=["direct", "redirected"])
@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_large_segments(
    plane: Plane, taken: list[RunningProxy], version: str, redirected: bool
) -> None:
    """Many megabytes, in pieces larger than the MTU, as the kernel hands them over."""
    if redirected:
        plane.policy("client", *OPEN, Entry(EGRESS, 0, TCP, PORT, REDIRECT, proxy=EGRESS_PROXY))
    # X is for the proxy, Q for the server.
    data = random.Random(1).randbytes(4_000_000).replace(b"X", b"x").replace(b"Q", b"q")
    with Talk(plane.lab["client"], getattr(plane.lab["server"], version), PORT) as talk:
        for _ in range(3):
            assert talk.echo(data) == data
    assert plane.drops() == {}
    packets = plane.counters()["client", EGRESS, "TO_PROXY" if redirected else "FORWARDED"]
    assert packets < 12_000_000 / 1600, "larger than the MTU, on average"


def mutated(chance: random.Random, frame: bytes) -> bytes:
    """A frame with some bytes changed, cut off or put in."""
    made = bytearray(frame)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(12, len(made))
        what = chance.random()
        if what < 0.7:
            made[at] = chance.choice(
                (0, 0xFF, made[at] ^ (1 << chance.randrange(8)), chance.randrange(256))
            )
        elif what < 0.85:
            del made[max(14, at) :]
        else:
            made[at:at] = chance.randbytes(chance.randint(1, 9))
        if len(made) < 15:
            break
    return bytes(made)


def test_nothing_passes_where_nothing_is_allowed(plane: Plane) -> None:
    """Thousands of frames, right and wrong: without a policy only neighbours pass."""
    chance = random.Random(20)
    plane.policy("client")
    sources = [frame for frame, _ in FROM_CLIENT.values()]
    ran = passed = 0
    for _ in range(4000):
        frame = mutated(chance, chance.choice(sources))
        for direction in (EGRESS, INGRESS) if is_whole(frame) else ():
            ran += 1
            if judged(plane, frame, direction) == PASSED:
                passed += 1
                kind = frame[12:14]
                discovers = (
                    kind == b"\x86\xdd"
                    and frame[54:]
                    and (130 <= frame[54] <= 137 or frame[54] == 143)
                )
                walked = kind == b"\x86\xdd" and frame[20] in (HOP, ROUTING, FRAGMENT, AH, OPTIONS)
                assert kind == b"\x08\x06" or discovers or walked, frame.hex()
    found = plane.counters()
    del found["client", EGRESS, "EVENTS_LOST"], found["client", INGRESS, "EVENTS_LOST"]
    # The endpoint's own kernel may have had something to say to its neighbour meanwhile.
    assert ran <= found.total() < ran + 50
    forwarded = found["client", EGRESS, "FORWARDED"] + found["client", INGRESS, "FORWARDED"]
    assert passed <= forwarded < passed + 50
    assert passed < ran / 5


def test_only_what_is_allowed_passes(plane: Plane) -> None:
    """As before, with one port open: whatever else a frame says, it says that port."""
    chance = random.Random(21)
    plane.policy("client", Entry(EGRESS, 0, TCP, PORT))
    sources = [v4(), v6(), v4(options=b"\1" * 8), v6(chain(2), OPTIONS)]
    for _ in range(4000):
        frame = mutated(chance, chance.choice(sources))
        if is_whole(frame) and judged(plane, frame) == PASSED and frame[12:14] == b"\x08\0":
            start = 14 + (frame[14] & 15) * 4
            assert frame[23] == TCP
            assert frame[start + 2 : start + 4] == struct.pack("!H", PORT), frame.hex()
            assert frame[26:30] == socket.inet_aton(CLIENT4)
    assert plane.counters()["client", EGRESS, "FORWARDED"] > 200


def test_a_flood_of_connections_is_bounded(privileged: None, plane: Plane) -> None:
    """More than the table has room for: it does not grow, and who is connected stays so."""
    small = Plane(plane.lab, plane.cache, sizes={"conntrack": 1024})
    lab = plane.lab
    try:
        small.attach(lab["server"], 1002)
        small.policy("server", Entry(INGRESS, 0, TCP, PORT))
        index, path = lab.node.ifindex(lab["server"].interface), str(lab.node.path)
        with Talk(lab["client"], lab["server"].ipv4, PORT) as talk:
            for round_ in range(40):
                for port in range(100):
                    source = f"198.51.{round_}.{port}"
                    frame = ethernet(ipv4(source, SERVER4, TCP, frames.tcp(1024 + port, PORT, SYN)))
                    assert run_program(small.to_endpoint, frame, index, path) == PASSED
                assert talk.echo(b"on") == b"on"
            assert 0 < small.maps["conntrack"].count() <= 1024
        assert small.counters()["server", INGRESS, "FORWARDED"] > 4000
        assert small.drops() == {}
    finally:
        plane.attach(lab["server"], 1002)
        small.close()
