"""Follows docs/recording.md in a clean environment; its numbers and its format are the code's."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from ipaddress import IPv4Address
from pathlib import Path

import dpkt
import pytest

from proxylib import tap
from proxylib.recording import (
    MAX_FILE,
    Closed,
    Data,
    Facts,
    Logged,
    Recording,
    Verdict,
    write_lines,
)
from tests.docs.pages import DOCS, Reader

# The first of the session waits for the wheel to be built.
pytestmark = pytest.mark.timeout(300)

PAGE = DOCS / "recording.md"
TEXT = " ".join(PAGE.read_text().split())


def capture(path: Path, server: str) -> None:
    """What tcpdump, which needs root, would have written."""
    tcp = dpkt.tcp.TCP(sport=40000, dport=4000, seq=1, flags=dpkt.tcp.TH_ACK)
    tcp.data = b"WRITE plans\r\n"
    addresses = [IPv4Address(text).packed for text in ("127.0.0.9", server)]
    ip = dpkt.ip.IP(src=addresses[0], dst=addresses[1], p=6, data=tcp)
    ip.len = len(bytes(ip))
    with path.open("wb") as file:
        dpkt.pcap.Writer(file).writepkt(bytes(dpkt.ethernet.Ethernet(data=ip)), ts=1000)


def test_all_that_it_says(reader: Reader) -> None:
    capture(reader.folder / "capture.pcap", reader.here("127.0.0.1"))
    reader.follow(PAGE)
    assert reader.seen.count("text output") == 5
    (recorded,) = (reader.folder / "recordings").glob("*.jsonl")
    assert "token" not in recorded.read_text()


def test_its_limits() -> None:
    assert f"`--limit` bytes ({tap.MAX_CONNECTION >> 20} MiB)" in TEXT
    assert f"`--connections` ({tap.MAX_CONNECTIONS})" in TEXT
    assert f"at most {tap.MAX_MEMORY >> 20} MiB in memory" in TEXT
    assert f"more than {MAX_FILE >> 20} MiB are not read" in TEXT


def test_its_format() -> None:
    happenings = (
        Data(False, b"x"),
        Data(False, end=True),
        Verdict(False, "PASS", 1),
        Logged("Request", "p", {}),
        Closed("gone"),
    )
    first, *others = map(json.loads, write_lines(Recording(Facts("p"), happenings)))
    assert set(first) == {"proxylib-recording", *(field.name for field in fields(Facts))}
    assert all(f"`{key}`" in TEXT for key in first)
    shown = [
        set(re.findall(r'"(\w+)":', row))
        for row in re.findall(r"^\| `(\{.*?)` \|", PAGE.read_text(), re.M)
    ]
    assert shown == [set(line) for line in others]
