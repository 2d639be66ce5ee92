"""Verdicts of a parser and results of a call, with the numbers of the C ABI.

An op list is flat: ``[PASS, 24, MORE, 1]``.  That is what the engine hands to
its host, and what a batch parser appends to; the numbers are those of the
proxylib C ABI's ``FilterOp``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Op(IntEnum):
    """What to do with the bytes at the front of the current input."""

    MORE = 0
    """At least n more bytes are needed; the parser is not called before."""
    PASS = 1
    """Forward n bytes; n may exceed what has arrived."""
    DROP = 2
    """Discard n bytes; n may exceed what has arrived."""
    INJECT = 3
    """Send n bytes from the front of this direction's inject buffer here."""
    ERROR = 4
    """The stream cannot be parsed; n is an `ErrorCode`. The connection is closed."""
    WAIT = 5
    """Ours: call again when what was asked (Connection.ask) is answered; n is 1. Until then
    the bytes that are there wait, and those behind them. Never leaves the library."""
    NOP = 256
    """Nothing to do until more data comes. Never leaves the engine."""


class ErrorCode(IntEnum):
    """Why a parser gave up; the n of an ERROR op."""

    INVALID_OP_LENGTH = 1
    """An op with a length that it cannot have; Cilium's hosts know it."""
    INVALID_FRAME_TYPE = 2
    """A frame of no known type."""
    INVALID_FRAME_LENGTH = 3
    """A frame of a length that it cannot have."""
    CLOSE = 100
    """Ours: close once the ops before are carried out. The parser has logged why."""


class FilterResult(IntEnum):
    """What a call through the C ABI returns. Everything but OK closes the connection."""

    OK = 0
    POLICY_DROP = 1
    """The policy, or the factory, refuses the connection."""
    PARSER_ERROR = 2
    """The parser has failed; the log says how."""
    UNKNOWN_PARSER = 3
    """Nobody registered a parser of that name."""
    UNKNOWN_CONNECTION = 4
    """There is no connection of that number, or it is closed."""
    INVALID_ADDRESS = 5
    """An address that is not ``ip:port``."""
    INVALID_INSTANCE = 6
    """No module instance of that number is open."""
    UNKNOWN_ERROR = 7
    """Anything else; the process's log has it."""


class EntryType(IntEnum):
    """The kind of an access-log entry (cilium.EntryType)."""

    Request = 0
    """A request that was allowed."""
    Response = 1
    """A reply, with its status."""
    Denied = 2
    """A request that was denied, or (field ``status``) what ended the connection."""


# Module constants, so that a parser's hot path loads a global and not an attribute
# of an enum.
MORE: Final = Op.MORE
PASS: Final = Op.PASS
DROP: Final = Op.DROP
INJECT: Final = Op.INJECT
ERROR: Final = Op.ERROR
WAIT: Final = Op.WAIT
NOP: Final = Op.NOP
