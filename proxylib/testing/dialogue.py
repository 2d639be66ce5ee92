r"""Tests that read as a dialogue.

A script says what each side sends and, below it, what comes of that::

    client: READ plans/x\r\n
      server gets: READ plans/x\r\n
      log: Request cmd=READ file=plans/x
    client: READ secret\r\n
      client gets: ERROR\r\n
      log: Denied cmd=READ file=secret
    server: OK\r\n
      client gets: OK\r\n
    client ends

The left-hand lines are played on a `Host`; the indented ones are what is expected,
all of it and in this order, and ``closed`` if the engine closes the connection.  A
difference is shown as a diff of two scripts.  Bytes are written as in a Python
literal without its quotes (``\r\n``, ``\x00``, ``\\``); blanks at either end of them
do not count, so one that matters is written ``\x20``.  Blank lines, and lines that
begin with ``#``, are for the reader.
"""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxylib.message import Value
from proxylib.testing.chunking import check_chunking
from proxylib.testing.host import Host, HostClosed, LogRecord

_SIDES = ("client", "server")

Rules = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One left-hand line: what a side sends (data), or that it ends its stream."""

    side: str
    data: bytes
    ends: bool

    @property
    def reply(self) -> bool:
        """The direction: True from the server to the client."""
        return self.side == "server"

    def __str__(self) -> str:
        return f"{self.side} ends" if self.ends else f"{self.side}: {escape(self.data)}"


def check_dialogue(
    parser: str,
    script: str,
    rules: Rules | None = None,
    *,
    deny: Rules = (),
    chunking: bool = True,
) -> None:
    """Assert that `script` is what happens under the parser named `parser`.

    rules, deny: as in `Host`.  chunking: also check that it does not matter how
    what is sent is cut (`proxylib.testing.check_chunking`).
    Raises AssertionError with a diff, ValueError for a script that cannot be read.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    expected = list(_lines(script))
    steps = [_step(line) for line in expected if not line.startswith(" ")]
    happened = list(transcript(Host(parser, rules, deny=deny), steps))
    if expected != happened:
        diff = difflib.unified_diff(expected, happened, "expected", "happened", lineterm="", n=99)
        raise AssertionError(f"the dialogue with {parser!r} differs:\n" + "\n".join(diff))
    if chunking:
        bursts = [(step.reply, step.data) for step in steps if not step.ends]
        check_chunking(parser, bursts, rules, deny=deny)


def transcript(host: Host, steps: Sequence[Step]) -> Iterator[str]:
    """Play `steps` on `host`; yields the script of what happens."""
    for step in steps:
        yield str(step)
        logged = len(host.log)
        try:
            feed = host.server if step.reply else host.client
            out = {step.reply: feed(step.data, end=step.ends)}
        except HostClosed:
            yield "  the connection is closed already"
            continue
        out[not step.reply] = host.take(not step.reply)
        for reply, receiver in ((False, "server"), (True, "client")):
            if out[reply]:
                yield f"  {receiver} gets: {escape(out[reply])}"
        for record in host.log[logged:]:
            yield f"  log: {describe(record)}"
        if host.closed:
            yield "  closed"


def describe(record: LogRecord) -> str:
    """A log entry as scripts have it: its type, then its fields."""
    fields = [f"{key}={_value(value)}" for key, value in record.fields.items()]
    return " ".join([record.entry_type.name, *fields])


def escape(data: bytes) -> str:
    """Bytes as scripts have them."""
    text = repr(data)[2:-1]
    # repr escapes the quote that it chose; scripts have none.
    text = text.replace("\\'", "'")
    if text.startswith(" "):
        text = r"\x20" + text[1:]
    return text[:-1] + r"\x20" if text.endswith(" ") else text


def unescape(text: str) -> bytes:
    """The bytes that `text` stands for. Raises ValueError for a bad escape."""
    try:
        data = ast.literal_eval('b"' + text.replace('"', r"\x22") + '"')
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} are not bytes as in a Python literal: {error}") from None
    assert isinstance(data, bytes)
    return data


def _value(value: Value | object) -> str:
    if isinstance(value, bytes):
        return escape(value)
    if isinstance(value, (list, tuple)):
        return ",".join(_value(item) for item in value)
    return str(value)


def _lines(script: str) -> Iterator[str]:
    """The script's lines, indented by two blanks or not at all."""
    for line in textwrap.dedent(script).splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"  {text}" if line[0].isspace() else str(_step(text))


def _step(line: str) -> Step:
    side, _, rest = line.partition(":")
    if side in _SIDES:
        return Step(side, unescape(rest.strip()), ends=False)
    for side in _SIDES:
        if line == f"{side} ends":
            return Step(side, b"", ends=True)
    raise ValueError(f"{line!r}: a line is 'client: …', 'server: …', 'client ends', 'server ends'")
