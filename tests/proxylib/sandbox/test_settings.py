"""What an operator may choose, and what is said about the rest."""

from __future__ import annotations

import pytest

from proxylib.errors import ConfigError
from proxylib.sandbox import DEFAULTS, OnError, Settings, parse_settings


def test_nothing_chosen() -> None:
    assert parse_settings({"parser": "r2d2"}) == DEFAULTS
    assert DEFAULTS.on_error is None


def test_all_chosen() -> None:
    values = {
        "on_error": "pass-through",
        "time_budget": 0.5,
        "memory_budget": 1 << 20,
        "breaker_panics": 7,
        "breaker_period": 2,
        "isolation": "process",
    }
    assert parse_settings(values) == Settings(
        OnError.PASS_THROUGH, 0.5, 1 << 20, 7, 2, isolated=True
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"on_error": "open"}, "on_error: 'open' is none of close, deny, pass-through"),
        ({"isolation": "vm"}, "isolation: 'vm' is none of none, process"),
        ({"time_budget": 0}, "time_budget: 0 is not 0.001 to 60 seconds"),
        ({"time_budget": float("nan")}, "time_budget: nan is not 0.001 to 60 seconds"),
        ({"breaker_panics": 0}, "breaker_panics: 0 is not 1 to 1e"),
        ({"breaker_period": 1e9}, "breaker_period: 1000000000.0 is not 0.1 to 3600 seconds"),
    ],
)
def test_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(values)
    assert str(refused.value).startswith(reason)
