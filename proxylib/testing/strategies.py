"""Hypothesis strategies for parser tests. Needs the package ``hypothesis``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st


def cuts(length: int, *, most: int = 12) -> st.SearchStrategy[list[int]]:
    """Sorted positions at which a stream of `length` bytes may be cut, at most `most`."""
    if length < 2:
        return st.just([])
    positions = st.lists(st.integers(1, length - 1), max_size=most, unique=True)
    return positions.map(sorted)


def chunks(data: bytes, *, most: int = 12) -> st.SearchStrategy[list[bytes]]:
    """`data` in one to `most` + 1 chunks, none of them empty; [] for no data."""
    return cuts(len(data), most=most).map(lambda at: cut_at(data, at))


def cut_at(data: bytes, positions: Sequence[int]) -> list[bytes]:
    """`data` cut at each of the sorted `positions`."""
    bounds = [0, *positions, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds)]
    return [piece for piece in pieces if piece]
