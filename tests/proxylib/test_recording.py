"""The format of recordings: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib.recording import (
    Closed,
    Data,
    Facts,
    Logged,
    Recording,
    RecordingError,
    Verdict,
    read_lines,
    redact,
    write_lines,
)

VALUES = st.one_of(st.text(), st.integers(), st.lists(st.text()))
HAPPENINGS = st.one_of(
    st.builds(Data, st.booleans(), st.binary()),
    st.builds(Data, st.booleans(), st.just(b""), st.just(True)),
    st.builds(Verdict, st.booleans(), st.sampled_from(["PASS", "DROP"]), st.integers()),
    st.builds(Logged, st.just("Request"), st.text(), st.dictionaries(st.text(), VALUES)),
    st.builds(Closed, st.just("gone")),
)
RECORDINGS = st.builds(
    Recording,
    st.builds(Facts, st.text(), policy=st.binary(), src_addr=st.text(), src_id=st.integers()),
    st.lists(HAPPENINGS).map(tuple),
)


@given(RECORDINGS)
def test_what_is_written_is_read(recording: Recording) -> None:
    assert read_lines(list(write_lines(recording))) == recording


@given(RECORDINGS)
def test_redacting_keeps_lengths(recording: Recording) -> None:
    redacted = redact(recording, [re.compile(b"[a-z]+")])
    assert [len(b.data) for b in redacted.bursts] == [len(b.data) for b in recording.bursts]
    assert not any(re.search(b"[a-wyz]", b.data) for b in redacted.bursts)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["x"],
        ["{}"],
        ["[]"],
        ['{"proxylib-recording": 2}'],
        [*write_lines(Recording(Facts("x"), ())), '{"data": 1, "reply": true}'],
        [*write_lines(Recording(Facts("x"), ())), '{"data": "\\u1234", "reply": true}'],
        [*write_lines(Recording(Facts("x"), ())), '{"op": "PASS"}'],
        [*write_lines(Recording(Facts("x"), ())), "[" * 100_000],
        [*write_lines(Recording(Facts("x"), ())), json.dumps({"other": 1})],
    ],
)
def test_what_is_no_recording_is_refused(lines: list[str]) -> None:
    with pytest.raises(RecordingError):
        read_lines(lines)
