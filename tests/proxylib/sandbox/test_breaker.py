"""The circuit breaker: when it opens, and how it closes again."""

from __future__ import annotations

import pytest

from proxylib import limits
from proxylib.sandbox import Breaker, breaker_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, 10.0, clock=clock)


def trip(breaker: Breaker) -> None:
    for _ in range(breaker.panics + 1):
        breaker.panicked()
    assert breaker.state == "open"


def test_opens_by_more_than_its_panics(breaker: Breaker) -> None:
    assert [breaker.panicked() for _ in range(4)] == [None, None, None, limits.BREAKER_PAUSE]
    assert breaker.state == "open"
    assert not breaker.admits()
    assert (breaker.opened, breaker.total) == (1, 4)


def test_panics_far_apart_do_not_open_it(breaker: Breaker, clock: Clock) -> None:
    for _ in range(20):
        assert breaker.panicked() is None
        clock.now += 5
    assert breaker.state == "closed"
    assert breaker.admits()


def test_one_connection_on_trial(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += limits.BREAKER_PAUSE - 0.1
    assert not breaker.admits()
    clock.now += 0.1
    assert breaker.admits()
    assert breaker.state == "half-open"
    assert not breaker.admits(), "one at a time"
    breaker.ended()
    assert breaker.state == "closed"
    assert breaker.admits()


def test_a_trial_that_lasts_closes_it(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += limits.BREAKER_PAUSE
    assert breaker.admits()
    clock.now += breaker.period
    assert breaker.admits()
    assert breaker.state == "closed"


def test_a_trial_that_panics_doubles_the_pause(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    pauses = []
    for _ in range(10):
        clock.now += limits.MAX_BREAKER_PAUSE
        assert breaker.admits()
        pauses.append(breaker.panicked())
        assert not breaker.admits()
    first = limits.BREAKER_PAUSE
    assert pauses[:3] == [2 * first, 4 * first, 8 * first]
    assert pauses[-1] == limits.MAX_BREAKER_PAUSE


def test_panics_of_older_connections_do_not_prolong_the_pause(
    breaker: Breaker, clock: Clock
) -> None:
    trip(breaker)
    assert breaker.panicked() is None
    breaker.ended()
    assert breaker.state == "open"
    clock.now += limits.BREAKER_PAUSE
    assert breaker.admits()


def test_configure(breaker: Breaker) -> None:
    breaker.configure(1, 10.0)
    breaker.panicked()
    assert breaker.panicked() == limits.BREAKER_PAUSE


def test_one_for_each_parser() -> None:
    assert breaker_of("test.a") is breaker_of("test.a")
    assert breaker_of("test.a") is not breaker_of("test.b")
