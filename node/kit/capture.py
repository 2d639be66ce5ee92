"""TCP connections out of a capture file (pcap or pcapng), as recordings without a policy.

Segments are put in order, and what was sent twice counts once.  A connection whose
capture has a hole ends there: what lies behind it cannot be judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import dpkt

from node.errors import UsageError
from proxylib.recording import Closed, Data, Facts, Happening, Recording

MAX_PENDING = 4 << 20
"""Bytes of one direction that wait for a segment before them."""

MAX_CONNECTION = 64 << 20
"""Bytes of one connection that are read."""

_MAGIC = {
    b"\xa1\xb2\xc3\xd4": dpkt.pcap.Reader,
    b"\xd4\xc3\xb2\xa1": dpkt.pcap.Reader,
    b"\xa1\xb2\x3c\x4d": dpkt.pcap.Reader,
    b"\x4d\x3c\xb2\xa1": dpkt.pcap.Reader,
    b"\x0a\x0d\x0d\x0a": dpkt.pcapng.Reader,
}

_SEQUENCES = 1 << 32

Peer = tuple[str, int]


def is_capture(path: Path) -> bool:
    """Whether a file begins as captures do."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_capture(path: Path, parser: str, port: int | None = None) -> list[Recording]:
    """The TCP connections of a capture file, in the order in which they began.

    parser: what they are to be judged by. port: only those to this server port.
    The client is who sent the SYN; where that was not captured, who has the higher
    port.  Raises UsageError if the file cannot be read.
    """
    connections: dict[tuple[Peer, Peer], _Connection] = {}
    finished: list[_Connection] = []
    try:
        with path.open("rb") as file:
            for when, source, destination, segment in _segments(file):
                connection = _connection(connections, finished, source, destination, segment, when)
                if connection is not None:
                    connection.take(source, segment)
    except (OSError, ValueError, dpkt.Error) as error:
        raise UsageError(f"{path} is not a capture that can be read: {error}") from None
    every = sorted([*finished, *connections.values()], key=lambda each: each.began)
    chosen = (each for each in every if port is None or each.server[1] == port)
    return [each.recording(parser) for each in chosen if each.happenings]


@dataclass(eq=False)
class _Stream:
    """One direction: what is next, and what has come too early."""

    next: int | None = None
    pending: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    fin: int | None = None
    ended: bool = False


@dataclass(eq=False)
class _Connection:
    client: Peer
    server: Peer
    began: float
    happenings: list[Happening] = field(default_factory=list)
    size: int = 0
    over: bool = False
    streams: tuple[_Stream, _Stream] = field(default_factory=lambda: (_Stream(), _Stream()))

    def take(self, source: Peer, segment: Any) -> None:
        """One segment: keep what is new of it, and see what is in order now."""
        if self.over:
            return
        reply = source != self.client
        stream = self.streams[reply]
        sequence, data = segment.seq, bytes(segment.data)
        if segment.flags & dpkt.tcp.TH_SYN:
            stream.next = sequence = (sequence + 1) % _SEQUENCES
        if stream.next is None:
            stream.next = sequence
        if segment.flags & dpkt.tcp.TH_FIN:
            stream.fin = (sequence + len(data)) % _SEQUENCES
        if data and len(data) > len(stream.pending.get(sequence, b"")):
            stream.size += len(data) - len(stream.pending.get(sequence, b""))
            stream.pending[sequence] = data
        self._advance(reply, stream)
        if segment.flags & dpkt.tcp.TH_RST:
            self._end("gone")
        elif stream.size > MAX_PENDING:
            self._end("hole")

    def _advance(self, reply: bool, stream: _Stream) -> None:
        assert stream.next is not None
        while data := _in_order(stream):
            self.happenings.append(Data(reply, data))
            self.size += len(data)
            if self.size > MAX_CONNECTION:
                self._end("limit")
                return
        if stream.fin == stream.next and not stream.ended:
            stream.ended = True
            self.happenings.append(Data(reply, end=True))

    def _end(self, why: str) -> None:
        self.over = True
        self.happenings.append(Closed(why))

    def recording(self, parser: str) -> Recording:
        facts = Facts(
            parser=parser,
            src_addr=_text(self.client),
            dst_addr=_text(self.server),
            policy_name=self.server[0],
            time=self.began,
        )
        return Recording(facts, tuple(self.happenings))


def _in_order(stream: _Stream) -> bytes:
    """The bytes that are next, if they have come; segments may overlap what was taken."""
    assert stream.next is not None
    for sequence in list(stream.pending):
        # How far behind what is next the segment begins; ahead of it, a huge number.
        behind = (stream.next - sequence) % _SEQUENCES
        if behind >= _SEQUENCES // 2:
            continue
        data = stream.pending.pop(sequence)
        stream.size -= len(data)
        if behind < len(data):
            stream.next = (sequence + len(data)) % _SEQUENCES
            return data[behind:]
    return b""


def _connection(
    connections: dict[tuple[Peer, Peer], _Connection],
    finished: list[_Connection],
    source: Peer,
    destination: Peer,
    segment: Any,
    when: float,
) -> _Connection | None:
    key = (source, destination) if source < destination else (destination, source)
    known = connections.get(key)
    syn = segment.flags & (dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK)
    begins = syn == dpkt.tcp.TH_SYN
    if known is not None and begins and known.client == source and known.happenings:
        # The same ports again, later.
        finished.append(connections.pop(key))
        known = None
    if known is None:
        client_is_source = begins or (syn == 0 and source[1] > destination[1])
        if syn == dpkt.tcp.TH_ACK:
            client_is_source = source[1] > destination[1]
        client, server = (source, destination) if client_is_source else (destination, source)
        known = connections[key] = _Connection(client, server, when)
    return known


def _segments(file: BinaryIO) -> Iterator[tuple[float, Peer, Peer, Any]]:
    reader = _MAGIC.get(file.read(4))
    if reader is None:
        raise ValueError("it begins as no pcap or pcapng file does")
    file.seek(0)
    capture = reader(file)
    link = capture.datalink()
    for when, packet in capture:
        ip = _ip(link, packet)
        if ip is not None and isinstance(ip.data, dpkt.tcp.TCP):
            tcp = ip.data
            source = str(ip_address(ip.src)), tcp.sport
            destination = str(ip_address(ip.dst)), tcp.dport
            yield float(when), source, destination, tcp


_LINKS = {
    dpkt.pcap.DLT_EN10MB: dpkt.ethernet.Ethernet,
    dpkt.pcap.DLT_LINUX_SLL: dpkt.sll.SLL,
    dpkt.pcap.DLT_LINUX_SLL2: dpkt.sll2.SLL2,
    dpkt.pcap.DLT_NULL: dpkt.loopback.Loopback,
    dpkt.pcap.DLT_LOOP: dpkt.loopback.Loopback,
}


def _ip(link: int, packet: bytes) -> Any:
    """The IP packet in a frame, or None: what cannot be read is not of a TCP connection."""
    try:
        if link in (dpkt.pcap.DLT_RAW, 12, 14):
            return dpkt.ip6.IP6(packet) if packet[0] >> 4 == 6 else dpkt.ip.IP(packet)
        frame = _LINKS[link](packet)
    except KeyError:
        raise ValueError(f"its link type {link} is not supported") from None
    except (dpkt.Error, IndexError):
        return None
    return frame.data if isinstance(frame.data, (dpkt.ip.IP, dpkt.ip6.IP6)) else None


def _text(peer: Peer) -> str:
    address, port = peer
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
