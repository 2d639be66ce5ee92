"""What is said about an exception, and which line is blamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proxylib import Connection, limits
from proxylib.sandbox import describe
from proxylib.testing import Host


class Silent(Exception):
    def __str__(self) -> str:
        raise SystemExit("never")


class Endless(Exception):
    def __str__(self) -> str:  # noqa: PLE0307
        while True:
            pass


class NoText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]  # noqa: PLE0307


class Liar(str):
    def __getitem__(self, key: object) -> str:
        raise ValueError("no slices")

    def __format__(self, spec: str) -> str:
        raise ValueError("no format")


class Lying(Exception):
    def __str__(self) -> str:
        return Liar("a lie")


class Chameleon(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("who am I?")


def catch(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raise_(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ValueError("bad"), "ValueError: bad (at "),
        (Silent, "Silent: <no text: SystemExit> (at "),
        (Endless, "Endless: <no text: BudgetExceeded> (at "),
        (NoText, "NoText: <no text: TypeError> (at "),
        (Lying, "Lying: a lie (at "),
        (lambda: Chameleon("x"), "Chameleon: x (at "),
        (lambda: ValueError("x" * 10_000), f"ValueError: {'x' * limits.MAX_PANIC_TEXT} (at "),
    ],
)
def test_text(make: Callable[[], BaseException], said: str) -> None:
    assert describe(catch(lambda: raise_(make()))).startswith(said)


def test_without_traceback() -> None:
    assert describe(ValueError("bad")) == "ValueError: bad"


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_the_parsers_line_is_blamed() -> None:
    """Not that of the library that it called, nor that of the framework."""

    def parse() -> None:
        json.loads("{")  # the place

    error = catch(parse)
    assert describe(error).endswith(f" (at {__file__}:{line_of('# the place')})")

    def inject(connection: Connection) -> None:
        connection.inject(True, 5)  # type: ignore[arg-type]  # the other place

    error = catch(lambda: inject(Host("test.passer").connection))
    assert describe(error).endswith(f" (at {__file__}:{line_of('# the other place')})")
