"""The watchdog: what it interrupts, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from proxylib.sandbox import BudgetExceeded, guarded

MS = 1_000_000


def spin() -> None:
    while True:
        pass


def swallow() -> None:
    while True:
        try:  # noqa: SIM105
            spin()
        except BaseException:
            pass


def swallow_and_return() -> str:
    try:  # noqa: SIM105
        spin()
    except BaseException:
        pass
    return "as if nothing had happened"


def never_in_finally() -> None:
    try:
        spin()
    finally:
        while True:
            try:
                spin()
            finally:
                continue  # noqa: B012


def generator() -> int:
    return sum(1 for _ in iter(int, 1))


def asleep() -> None:
    time.sleep(0.08)


@pytest.mark.parametrize(
    "call", [spin, swallow, swallow_and_return, never_in_finally, generator, asleep]
)
def test_a_call_past_its_budget_is_interrupted(call: Callable[[], object]) -> None:
    with pytest.raises(BudgetExceeded, match="a call ran longer than its 30 ms") as raised:
        guarded(30 * MS, call)
    files = [file for file, _ in raised.value.frames]  # type: ignore[attr-defined]
    assert __file__ in files


def test_a_call_within_its_budget_is_left_alone() -> None:
    assert guarded(500 * MS, sum, [1, 2, 3]) == 6
    with pytest.raises(KeyError):
        guarded(500 * MS, {}.__getitem__, "x")


def test_nothing_is_left_behind() -> None:
    assert sys.exception() is None
    for _ in range(5):
        with pytest.raises(BudgetExceeded):
            guarded(10 * MS, swallow_and_return)
        # Long enough for a stray interruption to arrive.
        deadline = time.monotonic() + 0.03
        while time.monotonic() < deadline:
            pass
    with pytest.raises(BudgetExceeded):
        guarded(10 * MS, never_in_finally)
    assert sys.exception() is None


def test_the_outer_budget_counts() -> None:
    with pytest.raises(BudgetExceeded, match="30 ms"):
        guarded(30 * MS, guarded, 10_000 * MS, spin)


def test_other_threads_are_not_hit() -> None:
    done: list[int] = []

    def innocent() -> None:
        for _ in range(20_000):
            done.append(guarded(5_000 * MS, len, b"abc"))

    threads = [threading.Thread(target=innocent) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            guarded(20 * MS, swallow)
    for thread in threads:
        thread.join()
    assert len(done) == 60_000


def test_the_recursion_limit_is_put_back() -> None:
    before = sys.getrecursionlimit()
    guarded(500 * MS, sys.setrecursionlimit, before + 1000)
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("arguments", [(), (0, len), (-1, len), ("x", len)])
def test_impossible_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        guarded(*arguments)


def test_what_was_late_in_c_leaves_the_interpreter_as_it_was() -> None:
    """An exception that came too late for its call must not stay pending: a function
    that is traced next would never begin."""
    code = (
        "import sys, threading\n"
        "from proxylib.sandbox import BudgetExceeded, guarded\n"
        "lock = threading.Lock()\n"
        "lock.acquire()\n"
        "try: guarded(5_000_000, lock.acquire, True, 1)\n"
        "except BudgetExceeded: print('late')\n"
        "sys.setprofile(lambda *_: None)\n"
        "def traced(): return 'fine'\n"
        "print(traced())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "late\nfine\n"


def test_a_call_that_is_debugged_may_take_its_time() -> None:
    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: None)
    try:
        guarded(10 * MS, asleep)
    finally:
        sys.settrace(before)
    with pytest.raises(BudgetExceeded):
        guarded(10 * MS, spin)
