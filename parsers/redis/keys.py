"""Which keys a request is about.

Mostly the table tells by position.  Six commands have keys behind options, which Redis
itself reads by code; so do we, and where its reading and ours could part, more is taken
for keys, or the request is said to have hidden ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from parsers.redis.commands import Command

_COUNT = re.compile(rb"0|[1-9][0-9]{0,9}")


class Keys(NamedTuple):
    """keys: those that can be located. hidden: there may be others."""

    keys: tuple[bytes, ...]
    hidden: bool = False


HIDDEN = Keys((), True)


def reach(command: Command, args: Sequence[bytes], count: int) -> int:
    """How many of a request's `count` arguments must be seen to locate its keys.

    args: those that are seen already; with more of them the answer may grow.
    """
    if command.elsewhere and command.name in _BY_OPTIONS:
        return count
    most = 1
    for place in command.places:
        if place.counted:
            most = max(most, place.first + 1)
            if place.first < len(args) and _COUNT.fullmatch(args[place.first]):
                most = max(most, place.first + 1 + int(args[place.first]))
        else:
            most = max(most, (place.last if place.last >= 0 else count + place.last) + 1)
    return min(most, count)


def locate(command: Command, args: Sequence[bytes], count: int) -> Keys:
    """The keys of a request of `count` arguments, of which `args` are seen."""
    if command.elsewhere:
        by_options = _BY_OPTIONS.get(command.name)
        return by_options(args) if by_options is not None else HIDDEN
    keys: list[bytes] = []
    for place in command.places:
        if place.counted:
            if place.first >= count:
                return HIDDEN
            number = args[place.first]
            end = place.first + 1 + int(number) if _COUNT.fullmatch(number) else count + 1
            if end > count:
                return HIDDEN
            keys += args[place.first + 1 : end]
        else:
            end = place.last if place.last >= 0 else count + place.last
            if end >= count:
                return HIDDEN
            keys += args[place.first : end + 1 : place.step]
    return Keys(tuple(keys))


def _stored(args: Sequence[bytes]) -> Keys:
    """GEORADIUS: the key, and whatever stands behind a STORE or STOREDIST."""
    targets = [
        args[i + 1] for i in range(4, len(args) - 1) if args[i].upper() in (b"STORE", b"STOREDIST")
    ]
    return Keys((*args[1:2], *targets))


def _sorted(args: Sequence[bytes]) -> Keys:
    """SORT: the key and what is behind STORE. BY and GET make keys out of elements."""
    keys = list(args[1:2])
    for i in range(2, len(args)):
        option = args[i].upper()
        following = args[i + 1] if i + 1 < len(args) else b""
        if option == b"STORE":
            keys.append(following)
        elif (option == b"GET" and following != b"#") or (option == b"BY" and b"*" in following):
            return HIDDEN
    return Keys(tuple(keys))


def _migrated(args: Sequence[bytes]) -> Keys:
    """MIGRATE host port key database timeout [options] [KEYS key …]."""
    if len(args) < 6:
        return HIDDEN
    takes = {b"COPY": 0, b"REPLACE": 0, b"AUTH": 1, b"AUTH2": 2}
    i = 6
    while i < len(args):
        option = args[i].upper()
        if option == b"KEYS":
            return Keys(tuple(args[i + 1 :])) if not args[3] else HIDDEN
        if option not in takes:
            return HIDDEN
        i += 1 + takes[option]
    return Keys((args[3],))


def _streams(args: Sequence[bytes]) -> Keys:
    """XREAD and XREADGROUP: behind STREAMS as many keys as ids."""
    takes = {b"BLOCK": 1, b"COUNT": 1, b"NOACK": 0, b"GROUP": 2}
    grouped, group = args[0].upper() == b"XREADGROUP", False
    i = 1
    while i < len(args):
        option = args[i].upper()
        if option == b"STREAMS":
            rest = args[i + 1 :]
            if len(rest) % 2 or (grouped and not group):
                return HIDDEN
            return Keys(tuple(rest[: len(rest) // 2]))
        if option not in takes:
            return HIDDEN
        group = group or option == b"GROUP"
        i += 1 + takes[option]
    return HIDDEN


_BY_OPTIONS: dict[bytes, Callable[[Sequence[bytes]], Keys]] = {
    b"GEORADIUS": _stored,
    b"GEORADIUSBYMEMBER": _stored,
    b"MIGRATE": _migrated,
    b"SORT": _sorted,
    b"SORT_RO": _sorted,
    b"XREAD": _streams,
    b"XREADGROUP": _streams,
}
