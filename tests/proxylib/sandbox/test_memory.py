"""What a parser holds, as native/memory.c counts it."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from proxylib.sandbox.native import load

MIB = 1 << 20
LIMIT = 64 * MIB


def held(root: object, limit: int = LIMIT) -> int:
    module = load()
    assert module is not None
    return int(module.held(root, limit))


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Numbers(list[int]):
    pass


class Lying(bytes):
    def __sizeof__(self) -> int:
        raise RuntimeError("none of your business")


def suspended(value: object) -> Iterator[object]:
    yield
    yield value


def started(value: object) -> Iterator[object]:
    generator = suspended(value)
    next(generator)
    return generator


def closure(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize(
    "wrap",
    [
        Holder,
        Slotted,
        started,
        closure,
        lambda value: [value],
        lambda value: {"key": value},
        lambda value: deque([value]),
        lambda value: Holder(Slotted([{1: (value,)}])),
        lambda value: Holder(value).__init__,  # type: ignore[misc]
    ],
)
def test_found_wherever_it_is(wrap: Callable[[object], object]) -> None:
    assert MIB <= held(wrap(bytes(MIB))) < MIB + 4096


def test_counted_once() -> None:
    value = bytes(MIB)
    assert held([value, value, {"again": value}]) < MIB + 4096


def test_subclasses_of_containers() -> None:
    assert held(Numbers(range(100_000))) > 100_000 * 8
    assert held(Lying(MIB)) >= MIB


def test_what_is_everybodys_is_not_counted() -> None:
    assert held([sys, Holder, held, gc.collect]) < 1000


def test_circles_end() -> None:
    first = Holder(None)
    first.value = Holder(first)
    assert held(first) < 1000


def test_counts_no_further_than_the_limit() -> None:
    assert held([bytes(MIB) for _ in range(64)], 2 * MIB) <= 4 * MIB
    assert held([[] for _ in range(250_000)]) > LIMIT, "too many objects are too much"
