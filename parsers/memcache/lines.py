"""One text request line, read as memcached reads it, or refused.

memcached splits a line at spaces alone, ends it at a line feed with at most one
carriage return before it, and stops at a NUL.  Only a line whose reading is the
same in every 1.6 release may be sent on: what one release takes for a value and
another for requests would let a request past the policy.  A refused line gets the
error that memcached itself would give.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from parsers.memcache.commands import (
    ARITHMETIC_MODES,
    MAX_KEY,
    MAX_VALUE,
    META_FLAGS,
    OTHER,
    STORE_MODES,
    TEXT,
    Reply,
    TextCommand,
)
from proxylib import ParserError

ERROR = b"ERROR\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"


class Request(NamedTuple):
    """What a request line asks for. (A frozen dataclass takes three times as long to make.)

    actions: what the policy must allow, each on every key.
    value: length of what follows the line, its CRLF included.
    silent: the client wants no answer, whatever happens (noreply).
    quiet: an answer comes only if there is something to tell (as with the meta flag q).
    tokens: what a meta command's answer must repeat, to tell it from the answers
        to the quiet requests before it.
    error: the answer to a line that is not to be sent on.
    """

    command: bytes
    actions: tuple[str, ...]
    reply: Reply
    keys: tuple[bytes, ...] = ()
    value: int = 0
    silent: bool = False
    quiet: bool = False
    tokens: tuple[bytes, ...] = ()
    error: bytes = b""

    @property
    def logged_keys(self) -> bytes | tuple[bytes, ...]:
        return self.keys[0] if len(self.keys) == 1 else self.keys


def parse(line: bytes) -> Request:
    """The request of one line (without its line end).

    Raises ParserError where the end of its value cannot be known.
    """
    name, *args = [token for token in line.split(b" ") if token] or [b""]
    shape = TEXT.get(name)
    if b"\0" in line:
        # The server would see less of the line than we do.
        return _malformed(name, shape, args, BAD_FORMAT)
    if shape is None:
        # One letter is no command, as in memcached.
        error = ERROR if len(name) < 2 else b""
        return Request(name, (OTHER,), Reply.LIST, error=error)
    if shape.reply is Reply.META:
        return _meta(name, shape, args)
    silent = shape.noreply and args[-1:] == [b"noreply"]
    if name == b"slabs":
        silent = silent and args[0] == b"automove"
    elif name == b"delete":
        silent = silent and len(args) > 1  # a key may be called noreply
    given = args[:-1] if silent else args
    if not shape.least <= len(given) <= shape.most:
        return _malformed(name, shape, args, ERROR, silent)
    keys: tuple[bytes, ...] = ()
    if shape.first_key:
        start = shape.first_key - 1
        keys = tuple(given[start:] if shape.many_keys else given[start : start + 1])
        if keys and max(map(len, keys)) > MAX_KEY:
            return _malformed(name, shape, args, BAD_FORMAT, silent)
    value = _value_length(name, given[shape.value - 1]) if shape.value else 0
    for which, least, most in shape.bounds:
        if not _within(given[which - 1], least, most):
            return _malformed(name, shape, args, BAD_FORMAT, silent)
    if value > MAX_VALUE + 2:
        return _malformed(name, shape, args, TOO_LARGE, silent)
    if name == b"delete" and len(given) == 2 and given[1] != b"0":
        return _malformed(name, shape, args, BAD_FORMAT, silent)
    # 1.6.18 tells the errors of refresh_certs in spite of noreply.
    quiet = silent and name == b"refresh_certs"
    return Request(name, (shape.action,), shape.reply, keys, value, silent, quiet)


def _meta(name: bytes, shape: TextCommand, args: list[bytes]) -> Request:
    if not shape.least <= len(args) <= shape.most:
        return _malformed(name, shape, args, BAD_FORMAT if args else ERROR)
    key = args[0]
    value = _value_length(name, args[1]) if shape.value else 0
    flags = {flag[:1]: flag[1:] for flag in args[shape.least :]}
    repeated = len(flags) != len(args) - shape.least
    if repeated or any(flag >= b"\x7f" for flag in flags) or len(key) > MAX_KEY:
        return _malformed(name, shape, args, BAD_FORMAT)
    if value > MAX_VALUE + 2:
        return _malformed(name, shape, args, TOO_LARGE)
    encoded = key
    if b"b" in flags:
        # 1.6.18 reads a key as base64 after "me KEY b" alone.
        decoded = _base64(key) if name != b"me" or args[1] == b"b" else None
        if decoded is None:
            return _malformed(name, shape, args, b"CLIENT_ERROR error decoding key\r\n")
        key = decoded
    actions = _meta_actions(name, shape, flags)
    if actions is None:
        return _malformed(name, shape, args, b"CLIENT_ERROR invalid mode\r\n")
    tokens = []
    if b"O" in flags:
        tokens.append(b"O" + flags[b"O"])
    if b"k" in flags:
        tokens.append(b"k" + encoded)
    quiet = b"q" in flags and name != b"me"
    return Request(name, actions, Reply.META, (key,), value, quiet=quiet, tokens=tuple(tokens))


def _meta_actions(
    name: bytes, shape: TextCommand, flags: dict[bytes, bytes]
) -> tuple[str, ...] | None:
    """What a meta command does, by its flags; None if its mode is none."""
    if not META_FLAGS.issuperset(b"".join(flags)):
        return (OTHER,)
    if name == b"mg":
        action = "gat" if b"T" in flags else "get"
        return (action, "add") if b"N" in flags else (action,)
    modes = {b"ms": STORE_MODES, b"ma": ARITHMETIC_MODES}.get(name)
    if modes is None:
        return (shape.action,)
    mode = modes.get(flags.get(b"M", b""))
    if mode is None or flags.get(b"M") == b"":
        return None
    if mode in ("set", "replace") and b"C" in flags:
        return ("cas",)
    if mode in ("append", "prepend") and b"N" in flags:
        return (mode, "add")
    return (mode,)


def _malformed(
    name: bytes,
    shape: TextCommand | None,
    args: list[bytes],
    error: bytes,
    silent: bool = False,
) -> Request:
    """A line to be answered with `error`; its value, if it has one, goes with it."""
    value = 0
    if shape is not None and 0 < shape.value <= len(args):
        value = _value_length(name, args[shape.value - 1])
    keys: tuple[bytes, ...] = ()
    if shape is not None and shape.first_key:
        keys = tuple(args[shape.first_key - 1 : shape.first_key])
    return Request(name, (OTHER,), Reply.LINE, keys, value, silent, error=error)


def _value_length(name: bytes, text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        shown = text[:40].decode("ascii", "backslashreplace")
        raise ParserError(
            f"{name.decode()}: the length {shown!r} is not a number of bytes:"
            " where the value ends cannot be known"
        )
    return int(text) + 2


def _within(text: bytes, least: int, most: int) -> bool:
    digits = text[1:] if least < 0 and text[:1] == b"-" else text
    return digits.isdigit() and len(digits) <= 20 and least <= int(text) <= most


def _base64(text: bytes) -> bytes | None:
    """The decoded key; None unless it is encoded in the one canonical way.

    memcached skips foreign characters and whatever follows the padding, so that
    one key has many spellings: only one of them is let through.
    """
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return decoded if decoded and base64.b64encode(decoded) == text else None
