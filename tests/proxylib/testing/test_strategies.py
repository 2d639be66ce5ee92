"""The strategies: chunks are the stream again, and none is empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxylib.testing.strategies import chunks, cut_at, cuts


@given(st.data(), st.binary(max_size=40))
def test_chunks(data: st.DataObject, stream: bytes) -> None:
    pieces = data.draw(chunks(stream, most=5))
    assert b"".join(pieces) == stream
    assert all(pieces)
    assert len(pieces) <= 6


@given(st.data(), st.integers(0, 30))
def test_cuts(data: st.DataObject, length: int) -> None:
    at = data.draw(cuts(length))
    assert at == sorted(set(at))
    assert all(0 < position < length for position in at)


def test_cut_at() -> None:
    assert cut_at(b"abcd", [1, 3]) == [b"a", b"bc", b"d"]
    assert cut_at(b"", []) == []
