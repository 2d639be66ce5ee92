"""The parsers that tests of hosts use: ``test.passer`` and its three companions.

Ports in behaviour of Cilium's parsers of the same names, so that a host's tests
for those run against this library.  They are written in the raw layer on purpose:
every op is answered one by one, as the C ABI has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxylib import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    NOP,
    PASS,
    BatchParser,
    Connection,
    Contains,
    EntryType,
    ErrorCode,
    L7Rule,
    Op,
    Parser,
    ParserFactory,
    Prefix,
    Suffix,
    parser,
    register_parser_factory,
)

_MAX_LENGTH_DIGITS = 20
"""Digits of the largest 64-bit number, which a block may begin with."""


class Passer(BatchParser):
    """Passes everything."""

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        if data:
            ops += (PASS, len(data))


class PasserFactory(ParserFactory):
    """Refuses connections under the policy name "invalid-policy"."""

    description = "Passes everything; for tests of hosts."

    def create(self, connection: Connection) -> Parser | None:
        return None if connection.policy_name == "invalid-policy" else Passer(connection)


register_parser_factory("test.passer", PasserFactory())


def _line(data: Sequence[bytes]) -> tuple[bytes, tuple[Op, int] | None]:
    """The first line, its line feed included; or the answer if there is none yet."""
    joined = b"".join(data)
    end = joined.find(b"\n") + 1
    if end:
        return joined[:end], None
    return joined, (MORE, 1) if joined else (NOP, 0)


@parser("test.lineparser")
class LineParser(Parser):
    """Lines that begin with PASS, DROP, INJECT (to the other side) or INSERT (here)."""

    inserted = False

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        line, incomplete = _line(data)
        if self.inserted:
            self.inserted = False
            return DROP, len(line)
        if incomplete:
            return incomplete
        if line.startswith(b"PASS"):
            return PASS, len(line)
        if line.startswith(b"DROP"):
            return DROP, len(line)
        if line.startswith(b"INJECT"):
            self.connection.inject(not reply, line)
            return DROP, len(line)
        if line.startswith(b"INSERT"):
            self.inserted = True
            return INJECT, self.connection.inject(reply, line)
        return ERROR, ErrorCode.INVALID_FRAME_TYPE


@parser("test.headerparser")
class HeaderParser(Parser):
    """Lines judged by how they begin and end and what they contain; replies pass."""

    class Rule(L7Rule):
        prefix = Prefix(of="line")
        contains = Contains(of="line")
        suffix = Suffix(of="line")

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        line, incomplete = _line(data)
        if incomplete:
            return incomplete
        if reply or self.connection.matches({"line": line.strip()}):
            self.connection.log(EntryType.Request, {"status": "PASS"})
            return PASS, len(line)
        self.connection.inject(not reply, b"Line dropped: " + line)
        self.connection.log(EntryType.Denied, {"status": "DROP"})
        return DROP, len(line)


@parser("test.blockparser")
class BlockParser(Parser):
    """Blocks ``LENGTH:TEXT``, the length that of the whole block, that say what to do.

    A block that contains PASS or DROP is judged before it has come in whole; one
    that contains INJECT goes to the other side, INSERT into this one.
    """

    inserted = False

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        joined = b"".join(data)
        if not joined:
            return NOP, 0
        digits, colon, _ = joined[: _MAX_LENGTH_DIGITS + 1].partition(b":")
        if not colon and len(digits) <= _MAX_LENGTH_DIGITS:
            return MORE, 1
        length = int(digits) if colon and digits.isdigit() else 0
        if not len(digits) < length < 1 << 62:
            return ERROR, ErrorCode.INVALID_FRAME_LENGTH
        if self.inserted:
            self.inserted = False
            return DROP, length
        return self._judge(reply, joined[:length], length)

    def _judge(self, reply: bool, block: bytes, length: int) -> tuple[Op, int]:
        if b"PASS" in block:
            self.connection.log(EntryType.Request, {"status": "200"})
            return PASS, length
        if b"DROP" in block:
            self.connection.log(EntryType.Denied, {"status": "503"})
            return DROP, length
        if len(block) < length:
            return MORE, length - len(block)
        if b"INJECT" in block:
            self.connection.inject(not reply, block)
            return DROP, length
        if b"INSERT" in block:
            self.inserted = True
            return INJECT, self.connection.inject(reply, block)
        return ERROR, ErrorCode.INVALID_FRAME_TYPE
