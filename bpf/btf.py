"""What the running kernel says of its own structures (BTF): where a member is, a function's number.

For the few members that programs read and no helper tells. Another kernel has them elsewhere, so
nothing of it is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from bpf.errors import BpfError

KERNEL = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")

_STRUCT, _UNION, _FUNC = 4, 5, 12
_QUALIFIERS = frozenset({8, 9, 10, 11, 18})
"""typedef, volatile, const, restrict, type tag: names for the type that they refer to."""

_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes after a type of these kinds: int, array, variable, declaration tag."""
_COUNTED = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes per element after these: structures, enumerations, prototypes, sections."""


class _Type(NamedTuple):
    name: int
    kind: int
    length: int
    bitfields: bool
    refers: int
    """The size, or the type that it refers to."""
    body: int


class Btf:
    """A kernel's types. Raises `BpfError` if there are none, or they cannot be read."""

    def __init__(self, path: Path = KERNEL) -> None:
        self.path = path
        try:
            self._data = path.read_bytes()
            magic, _, _, header, types, size, strings, length = _HEADER.unpack_from(self._data)
        except (OSError, struct.error) as error:
            raise BpfError(
                f"{path}: the kernel does not say where its structures' members are "
                "(it needs CONFIG_DEBUG_INFO_BTF)"
            ) from error
        if magic != _MAGIC:
            raise BpfError(f"{path} is no BTF of this machine's byte order")
        self._first, self._end = header + types, header + types + size
        self._strings = self._data[header + strings : header + strings + length]

    @cached_property
    def _types(self) -> list[_Type]:
        """By number; 0 is void."""
        found = [_Type(0, 0, 0, False, 0, 0)]
        at = self._first
        while at < self._end:
            name, info, refers = _TYPE.unpack_from(self._data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            found.append(_Type(name, kind, count, bool(info >> 31), refers, at + _TYPE.size))
            at += _TYPE.size + _FIXED.get(kind, 0) + count * _COUNTED.get(kind, 0)
        return found

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode(errors="replace")

    def _numbers(self, kind: int, name: str) -> Iterator[int]:
        # A name may stand in the strings as the end of another: compare where types point to.
        wanted = name.encode() + b"\0"
        for number, told in enumerate(self._types):
            if told.kind == kind and self._strings.startswith(wanted, told.name):
                yield number

    def function(self, name: str) -> int:
        """The number of a function of the kernel. Raises `BpfError`."""
        for number in self._numbers(_FUNC, name):
            return number
        raise BpfError(f"this kernel has no function {name}")

    def offset(self, structure: str, path: str) -> int:
        """Where a member is, in bytes; `path` goes through members, as ``sk_net.net``.

        Raises `BpfError` if there is none, or it is a bit field.
        """
        for number in self._numbers(_STRUCT, structure):
            total = 0
            for name in path.split("."):
                found = self._member(number, name)
                if found is None:
                    break
                number, offset = found
                total += offset
            else:
                if total % 8:
                    break
                return total // 8
        raise BpfError(f"this kernel's struct {structure} has no member {path}")

    def _member(self, number: int, name: str) -> tuple[int, int] | None:
        """The type and the offset, in bits, of a member, also of one in a nameless structure."""
        told = self._types[number]
        while told.kind in _QUALIFIERS:
            told = self._types[told.refers]
        if told.kind not in (_STRUCT, _UNION):
            return None
        for n in range(told.length):
            named, kind, offset = _MEMBER.unpack_from(self._data, told.body + n * _MEMBER.size)
            offset = offset & 0xFFFFFF if told.bitfields else offset
            text = self._text(named)
            if text == name:
                return kind, offset
            inner = self._member(kind, name) if not text else None
            if inner is not None:
                return inner[0], offset + inner[1]
        return None
