"""Aligned text for people: tables, and ``Name: value`` lines.

Values come from documents and peers, so that everything but printable characters
is escaped: a name cannot move a terminal's cursor.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import click

from node.console import paint

GAP = "   "
NAME_WIDTH = 24
"""Where the values of `lines` begin, as in ``cilium status``."""

Cell = str | Sequence[str]
"""The text of a cell, or its lines."""

_ROLES = {
    "ready": "good",
    "Ok": "good",
    "OK": "good",
    "allowed": "good",
    "Warning": "warning",
    "Failure": "error",
    "denied": "error",
    "no": "error",
}
"""Words that have a colour where they stand alone in a cell."""


def table(header: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    """Rows under `header`, each column as wide as its widest line."""
    split = [[_lines(cell) for cell in row] for row in (header, *rows)]
    widths = [
        max(_width(line) for row in split for line in row[column]) for column in range(len(header))
    ]
    text = []
    for number, row in enumerate(split):
        for parts in zip_longest(*row, fillvalue=""):
            cells = [
                _styled(part, header=number == 0) + " " * (width - _width(part))
                for part, width in zip(parts, widths, strict=True)
            ]
            text.append(GAP.join(cells).rstrip())
    return "\n".join(text)


def lines(pairs: Iterable[tuple[str, str]]) -> str:
    """``Name: value`` for each pair, the values below each other; without a name, only that."""
    return "\n".join(
        f"{safe(name) + ':' if name else '':{NAME_WIDTH}}{safe(value)}".rstrip()
        for name, value in pairs
    )


def safe(text: str) -> str:
    """`text` on one line, without control characters."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def show(text: str) -> None:
    """Print to stdout, with colours only on a terminal that may have them."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    click.echo(text if colour else click.unstyle(text), color=colour)


def mark(text: str, role: str) -> str:
    """`text` in the colours of its role (console.paint)."""
    return paint(text, role)


def _lines(cell: Any) -> list[str]:
    if isinstance(cell, str):
        return [safe(cell)]
    return [safe(line) for line in cell] or [""]


def _styled(text: str, *, header: bool) -> str:
    if header:
        return click.style(text, bold=True) if text else text
    return paint(text, _ROLES[text]) if text in _ROLES else text


def _width(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
