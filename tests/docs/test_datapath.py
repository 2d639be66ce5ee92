"""docs/datapath.md says of drop reasons, marks and lifetimes what the programs have."""

from __future__ import annotations

import re
from pathlib import Path

from bpf import schema
from bpf.compiler import PROGRAMS

TEXT = (Path(__file__).parents[2] / "docs" / "datapath.md").read_text()


def test_every_reason_is_explained() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \| .+ \|$", TEXT, re.M)
    assert rows == [(str(reason.number), reason.text) for reason in schema.REASONS]


def test_marks() -> None:
    marks = [int(mark, 16) for mark in re.findall(r"^\| `(0x\w+)` ", TEXT, re.M)]
    assert marks == [int(mark) for mark in schema.Mark]


def test_lifetimes() -> None:
    source = (PROGRAMS / "conntrack.h").read_text()
    told = dict(re.findall(r"#define LIFETIME_(\w+) \((\d+) \* SECOND\)", source))
    assert told == {"TCP": "21600", "SYN": "60", "CLOSING": "10", "ANY": "60"}
    assert "21,600 s (TCP), 60 s (TCP that nobody has answered; everything else), 10 s" in TEXT
