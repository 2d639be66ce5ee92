"""Connections out of captures: in order, once, and only as far as there is no hole."""

from __future__ import annotations

import random
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import UsageError
from node.kit.capture import is_capture, read_capture
from proxylib.recording import Closed, Recording

CLIENT, SERVER = b"\x7f\x00\x00\x01", b"\x7f\x00\x00\x02"
PORTS = (40000, 4000)
SYN, ACK, FIN, RST = 2, 16, 1, 4


def packet(reply: bool, seq: int, data: bytes = b"", flags: int = ACK, v6: bool = False) -> bytes:
    sport, dport = PORTS[::-1] if reply else PORTS
    tcp = dpkt.tcp.TCP(sport=sport, dport=dport, seq=seq % (1 << 32), flags=flags, data=data)
    src, dst = (SERVER, CLIENT) if reply else (CLIENT, SERVER)
    if v6:
        pad = b"\0" * 12
        ip = dpkt.ip6.IP6(src=pad + src, dst=pad + dst, nxt=6, data=tcp, plen=len(bytes(tcp)))
        return bytes(dpkt.ethernet.Ethernet(data=ip, type=dpkt.ethernet.ETH_TYPE_IP6))
    ip = dpkt.ip.IP(src=src, dst=dst, p=6, data=tcp)
    ip.len = len(bytes(ip))
    return bytes(dpkt.ethernet.Ethernet(data=ip))


def write(path: Path, packets: list[bytes], writer: type = dpkt.pcap.Writer) -> Path:
    with path.open("wb") as file:
        capture = writer(file)
        for number, item in enumerate(packets):
            capture.writepkt(item, ts=1000 + number)
    return path


def stream(recording: Recording, reply: bool) -> bytes:
    return b"".join(burst.data for burst in recording.bursts if burst.reply == reply)


@pytest.mark.parametrize("writer", [dpkt.pcap.Writer, dpkt.pcapng.Writer])
@pytest.mark.parametrize("v6", [False, True])
def test_a_connection(tmp_path: Path, writer: type, v6: bool) -> None:
    path = write(
        tmp_path / "x.pcap",
        [
            packet(False, 100, flags=SYN, v6=v6),
            packet(True, 900, flags=SYN | ACK, v6=v6),
            packet(False, 101, b"HA", v6=v6),
            packet(False, 101, b"HALT\r\n", v6=v6),  # sent again, with more
            packet(True, 901, b"OK\r\n", v6=v6),
            packet(False, 107, flags=FIN | ACK, v6=v6),
            b"not a packet",
        ],
        writer,
    )
    assert is_capture(path)
    (recording,) = read_capture(path, "r2d2")
    assert stream(recording, False) == b"HALT\r\n"
    assert stream(recording, True) == b"OK\r\n"
    assert recording.bursts[-1].end
    assert recording.facts.parser == "r2d2"
    assert recording.facts.dst_addr.endswith(":4000")
    assert recording.facts.time == 1000
    assert read_capture(path, "r2d2", port=4001) == []


@given(
    st.binary(min_size=1, max_size=60),
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_any_order_and_overlap_gives_the_stream(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    start: int,
    size: int,
    chance: random.Random,
) -> None:
    pieces = [
        packet(False, start + 1 + i, data[i : i + size + 2]) for i in range(0, len(data), size)
    ]
    pieces += chance.sample(pieces, len(pieces) // 2)
    chance.shuffle(pieces)
    path = tmp_path_factory.mktemp("captures") / "x.pcap"
    write(path, [packet(False, start, flags=SYN), *pieces])
    (recording,) = read_capture(path, "r2d2")
    assert stream(recording, False) == data


def test_what_lies_behind_a_hole_is_not_judged(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.pcap",
        [packet(False, 1, flags=SYN), packet(False, 2, b"a"), packet(False, 4, b"c")],
    )
    (recording,) = read_capture(path, "r2d2")
    assert stream(recording, False) == b"a"


def test_a_hole_holds_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.kit.capture.MAX_PENDING", 1000)
    packets = [packet(False, 1, flags=SYN), packet(False, 2, b"a")]
    packets += [packet(False, 4 + i * 100, b"x" * 100) for i in range(20)]
    (recording,) = read_capture(write(tmp_path / "x.pcap", packets), "r2d2")
    assert recording.happenings[-1] == Closed("hole")


def test_the_same_ports_again_are_another_connection(tmp_path: Path) -> None:
    packets = []
    for start in (100, 5000):
        packets += [packet(False, start, flags=SYN), packet(False, start + 1, b"x")]
        packets += [packet(False, start + 2, flags=RST)]
    recordings = read_capture(write(tmp_path / "x.pcap", packets), "r2d2")
    assert [stream(recording, False) for recording in recordings] == [b"x", b"x"]


def test_without_a_syn_the_higher_port_is_the_clients(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pcap", [packet(True, 5, b"OK"), packet(False, 7, b"HALT")])
    (recording,) = read_capture(path, "r2d2")
    assert (stream(recording, False), stream(recording, True)) == (b"HALT", b"OK")


@pytest.mark.parametrize("content", [b"", b"\xa1\xb2\xc3\xd4", b"\x0a\x0d\x0d\x0a" + b"\xff" * 99])
def test_what_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a capture that can be read"):
        read_capture(path, "r2d2")
