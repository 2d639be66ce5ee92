"""Inline commands: a line of words, as a person types them, split as Redis splits it.

Words stand between white space; one may be quoted, or end in a quoted part.  In double
quotes there are the escapes of C and ``\\xHH``, in single quotes only ``\\'``.

Source: Redis's protocol specification, "Inline commands", and the behaviour of 7.0.
"""

from __future__ import annotations

import re

from proxylib import ParserError

MAX_INLINE = 64 << 10
"""Longest line, bytes; Redis's own limit."""

# A word ends where its quotes do; behind them only white space may stand.
_WORD = re.compile(
    rb"""[ \t\n\v\f\r]*([^ \t\n\v\f\r"']*)"""
    rb"""(?:"((?:[^"\\]|\\[\x00-\xff])*)"|'((?:[^'\\]|\\'|\\(?!'))*)'|)(?=[ \t\n\v\f\r]|\Z)"""
)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([\x00-\xff]))")
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def _unescape(match: re.Match[bytes]) -> bytes:
    code, letter = match.groups()
    return bytes([int(code, 16)]) if code else _LETTERS.get(letter, letter)


def split(line: bytes) -> list[bytes]:
    """The words of a line without its end.

    Raises ParserError where Redis would close the connection, and for a NUL, at which
    it would stop reading the line.
    """
    if b"\0" in line:
        raise ParserError("an inline command holds a NUL")
    if b'"' not in line and b"'" not in line:
        return line.split()
    words: list[bytes] = []
    line = line.rstrip(b" \t\n\v\f\r")
    position = 0
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None or match.end() == position:
            raise ParserError("an inline command has unbalanced quotes")
        plain, double, single = match.groups()
        quoted = b""
        if double is not None:
            quoted = _ESCAPE.sub(_unescape, double)
        elif single is not None:
            quoted = single.replace(b"\\'", b"'")
        words.append(plain + quoted)
        position = match.end()
    return words
