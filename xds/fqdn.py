"""DNS names as policies select them, in Cilium's reading.

A pattern's ``*`` stands for any characters of one label, possibly none; a lone
``*`` for every name; a leading ``**.`` for one or more whole labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

MAX_NAME = 255
"""Longest name or pattern, characters (RFC 1035 section 2.3.4)."""

_NAME = re.compile(r"[-a-z0-9_]+(\.[-a-z0-9_]+)*")
_PATTERN = re.compile(r"[-a-z0-9_.*]+")
_LABEL = "[-a-z0-9_]"


@dataclass(frozen=True, slots=True)
class Fqdn:
    """Names that are `text`, or that match it if it is a pattern."""

    text: str
    is_pattern: bool = False

    def matches(self, name: str) -> bool:
        """True if DNS name `name` (any case, with or without its final dot) is selected."""
        name = normal_name(name)
        if not self.is_pattern:
            return name == self.text
        return len(name) <= MAX_NAME and _compiled(self.text).fullmatch(name) is not None

    def __str__(self) -> str:
        return self.text


def normal_name(name: str) -> str:
    """`name` in lower case and without its final dot; the root is ""."""
    return name.removesuffix(".").lower()


def match_name(text: str) -> Fqdn:
    """The selector of one name. Raises ValueError if `text` cannot be one."""
    name = normal_name(text)
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{text[:MAX_NAME]!r} is not a DNS name{_hint(name)}")
    return Fqdn(name)


def match_pattern(text: str) -> Fqdn:
    """The selector of names that match a pattern. Raises ValueError."""
    pattern = normal_name(text)
    if len(pattern) > MAX_NAME or not _PATTERN.fullmatch(pattern) or ".." in pattern:
        raise ValueError(
            f"{text[:MAX_NAME]!r} is not a pattern of DNS names: letters, digits, '-', '_', '.' "
            f"and '*' for any characters of a label"
        )
    return Fqdn(pattern, is_pattern=True)


def _hint(name: str) -> str:
    return "; a '*' belongs into a matchPattern" if "*" in name else ""


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    if pattern == "*":
        return re2.compile(rf"({_LABEL}+(\.{_LABEL}+)*)?")
    start = ""
    if pattern.startswith("**."):
        start, pattern = rf"{_LABEL}+(\.{_LABEL}+)*\.", pattern[3:]
    parts = re.split(r"\*+", pattern)
    return re2.compile(start + f"{_LABEL}*".join(map(re2.escape, parts)))
