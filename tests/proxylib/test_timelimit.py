"""A limit interrupts what takes too long, and nothing else."""

from __future__ import annotations

import time

import pytest

from proxylib.timelimit import TooLong, within


def test_what_is_in_time_is_left_alone() -> None:
    for _ in range(20):
        with within(5, "this"):
            pass


def test_what_takes_too_long_is_interrupted() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(TimeoutError, match=r"this took longer than 0.05 s"), within(0.05, "this"):
        endless()


def test_what_swallows_exceptions_is_interrupted() -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(0)
            except Exception:
                continue

    with pytest.raises(TimeoutError), within(0.05, "this"):
        stubborn()


def test_nothing_is_raised_behind_the_block() -> None:
    """The time may be over in the very moment in which the block ends."""
    late = 0
    for _ in range(60):
        try:
            with within(0.002, "this"):
                time.sleep(0.00205)
        except TimeoutError:
            late += 1
        try:
            time.sleep(0.001)
        except TooLong:
            pytest.fail("it was raised behind the block")
    assert 0 < late <= 60


def test_errors_of_the_block_are_its_own() -> None:
    with pytest.raises(ValueError, match="mine"), within(5, "this"):
        raise ValueError("mine")
