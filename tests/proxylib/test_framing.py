"""Where frames end: tables of cases, and agreement with the whole stream however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import Framing, ParserError, length_prefix, lines


@pytest.mark.parametrize(
    ("data", "start", "end"),
    [
        (b"", 0, -1),
        (b"READ x", 0, -1),
        (b"READ x\r", 0, -1),
        (b"READ x\r\n", 0, 8),
        (b"\r\n", 0, 2),
        (b"a\r\nb\r\n", 3, 6),
        (b"a\r\nb\r\n", 6, -1),
        (b"a\nb\r\n", 0, 5),
        (b"0123456789\r\n", 0, 12),
    ],
)
def test_lines(data: bytes, start: int, end: int) -> None:
    assert lines(limit=12).end(data, start) == end


@pytest.mark.parametrize("data", [b"0123456789a\r\n", b"0123456789ab", b"0123456789a\r"])
def test_line_past_its_limit(data: bytes) -> None:
    with pytest.raises(ParserError, match="longer than 12 bytes"):
        lines(limit=12).end(data, 0)


def test_lines_strip_their_delimiter() -> None:
    assert lines(b"\r\n").strip == 2
    assert lines(b"\n").strip == 1
    assert length_prefix(4).strip == 0


@pytest.mark.parametrize(
    ("framing", "data", "end"),
    [
        (length_prefix(2), b"", -2),
        (length_prefix(2), b"\x00", -1),
        (length_prefix(2), b"\x00\x00", 2),
        (length_prefix(2), b"\x00\x03ab", -1),
        (length_prefix(2), b"\x00\x03abc", 5),
        (length_prefix(2), b"\x00\x03abcd", 5),
        (length_prefix(2, little_endian=True), b"\x03\x00abc", 5),
        (length_prefix(1, offset=3), b"abc", -1),
        (length_prefix(1, offset=3), b"abc\x02", -2),
        (length_prefix(1, offset=3), b"abc\x02xy", 6),
        (length_prefix(2, adjust=-2), b"\x00\x05abc", 5),
        (length_prefix(2, adjust=4), b"\x00\x01", -5),
        (length_prefix(2, limit=6), b"\x00\x04abcd", 6),
    ],
)
def test_length_prefix(framing: Framing, data: bytes, end: int) -> None:
    assert framing.end(data, 0) == end
    prefix = b"before"
    assert framing.end(prefix + data, len(prefix)) == (end + len(prefix) if end > 0 else end)


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (length_prefix(2, limit=6), b"\x00\x05"),
        (length_prefix(8), b"\xff" * 8),
        (length_prefix(4), b"\x7f\xff\xff\xff"),
        (length_prefix(2, adjust=-2), b"\x00\x01"),
    ],
)
def test_absurd_length(framing: Framing, data: bytes) -> None:
    with pytest.raises(ParserError, match="limit"):
        framing.end(data, 0)


def split(framing: Framing, chunks: list[bytes]) -> list[bytes]:
    """The frames of a stream that arrives in chunks, waiting for as much as it says."""
    frames, buffer, need = [], b"", 0
    for chunk in chunks:
        buffer += chunk
        if len(buffer) < need:
            continue
        start = 0
        while (end := framing.end(buffer, start)) > 0:
            frames.append(buffer[start:end])
            start = end
        buffer = buffer[start:]
        need = len(buffer) - end
    return frames


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 9), min_size=1))
def test_frames_do_not_depend_on_chunks(bodies: list[bytes], sizes: list[int]) -> None:
    for framing, frames in [
        (length_prefix(2), [len(body).to_bytes(2, "big") + body for body in bodies]),
        (lines(b"\n"), [body.replace(b"\n", b"") + b"\n" for body in bodies]),
    ]:
        stream = b"".join(frames)
        chunks, at = [], 0
        while at < len(stream):
            size = sizes[len(chunks) % len(sizes)]
            chunks.append(stream[at : at + size])
            at += size
        assert split(framing, chunks) == frames
        assert split(framing, [stream]) == frames


def test_what_could_never_frame_anything() -> None:
    for size, offset, limit in ((0, 0, 10), (9, 0, 10), (1, -1, 10), (4, 4, 7)):
        with pytest.raises(ValueError, match="a length of"):
            length_prefix(size, offset=offset, limit=limit)
    for delimiter, limit in ((b"", 10), (b"\r\n", 1)):
        with pytest.raises(ValueError, match="a delimiter of"):
            lines(delimiter, limit=limit)
