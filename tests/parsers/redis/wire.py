"""Requests as clients write them."""

from __future__ import annotations


def request(*words: str | bytes) -> bytes:
    """An array of bulk strings."""
    args = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)


def words(text: str) -> bytes:
    """The same, of words between blanks."""
    return request(*text.split())
