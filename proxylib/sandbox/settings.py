"""What an operator may choose about a redirect's parser: keys of the filter's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from proxylib import limits
from proxylib.errors import ConfigError


class OnError(IntEnum):
    """What becomes of a stream that its parser has failed on, by whatever cause.

    The numbers are those of native.h.
    """

    CLOSE = 0
    """The connection is closed, after what was decided before has been forwarded."""
    DENY = 1
    """Nothing more reaches the server. The client gets the parser's `unparsable`
    reply, and still the replies to what was forwarded before. A failure in the reply
    direction closes."""
    PASS_THROUGH = 2
    """Everything passes unjudged from there on, in both directions: for those who
    only observe. The log says so."""


ISOLATIONS = ("none", "process")

ON_ERROR = {"close": OnError.CLOSE, "deny": OnError.DENY, "pass-through": OnError.PASS_THROUGH}

_RANGES = {
    "time_budget": (0.001, 60, "seconds"),
    "memory_budget": (1 << 16, 1 << 40, "bytes"),
    "breaker_panics": (1, 1_000_000, "panics"),
    "breaker_period": (0.1, 3600, "seconds"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The sandbox of one redirect. None: as the parser's class says."""

    on_error: OnError | None = None
    """None: pass through where the policy is in audit mode, which only observes; else close."""
    time_budget: float | None = None
    """Seconds that one call into the parser may take."""
    memory_budget: int | None = None
    """Bytes that a connection's parser may hold."""
    breaker_panics: int = limits.BREAKER_PANICS
    breaker_period: float = limits.BREAKER_PERIOD
    """More than so many panics in so many seconds take the parser out, everywhere in
    this process."""
    isolated: bool = False
    """The parser runs in a process of its own (``isolation: process``)."""
    config: Mapping[str, str] = field(default_factory=dict)
    """What the operator has to say to the parser: `Connection.config`."""
    debug: str = ""
    """A socket's path: log tracebacks in full, and have ``breakpoint()`` wait there."""


DEFAULTS = Settings()

KEYS: Mapping[str, type | tuple[type, ...]] = {
    "on_error": str,
    "time_budget": (int, float),
    "memory_budget": int,
    "breaker_panics": int,
    "breaker_period": (int, float),
    "isolation": str,
    "config": dict,
    "debug": str,
}
"""The keys and their JSON types."""


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from a filter's configuration, whose types have been checked.

    Raises ConfigError with the key and what it may be.
    """
    chosen = values.get("on_error")
    if chosen is not None and chosen not in ON_ERROR:
        raise ConfigError(f"on_error: {chosen!r} is none of {', '.join(ON_ERROR)}")
    isolation = values.get("isolation", "none")
    if isolation not in ISOLATIONS:
        raise ConfigError(f"isolation: {isolation!r} is none of {', '.join(ISOLATIONS)}")
    config = values.get("config", {})
    for key, value in config.items():
        if not isinstance(value, str):
            raise ConfigError(f"config: {key}: {value!r} is not a text")
    for key, (least, most, unit) in _RANGES.items():
        value = values.get(key, least)
        if not least <= value <= most:
            raise ConfigError(f"{key}: {value!r} is not {least:g} to {most:g} {unit}")
    return Settings(
        None if chosen is None else ON_ERROR[chosen],
        values.get("time_budget"),
        values.get("memory_budget"),
        values.get("breaker_panics", limits.BREAKER_PANICS),
        values.get("breaker_period", limits.BREAKER_PERIOD),
        isolation == "process",
        config,
        values.get("debug", ""),
    )
