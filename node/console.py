"""What commands print: lines for people, or JSON lines for programs.

May be used from several threads: a line is written whole, and at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from proxylib.accesslog import entry_to_json, entry_to_text
from proxylib.proto.accesslog_pb2 import LogEntry

_STYLES: dict[str, dict[str, Any]] = {
    "allowed": {"fg": "green"},
    "denied": {"fg": "red", "bold": True},
    "report": {"fg": "yellow", "bold": True},
    "warning": {"fg": "yellow", "bold": True},
    "error": {"fg": "red", "bold": True},
    "good": {"fg": "green", "bold": True},
    "dim": {"dim": True},
}


class Console:
    """Decisions go to stdout, what is told about the command itself to stderr.

    as_json: everything goes to stdout, one JSON object per line.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._lock = threading.Lock()
        no_color = bool(os.environ.get("NO_COLOR"))
        self._stdout_color = not no_color and sys.stdout.isatty()
        self._stderr_color = not no_color and sys.stderr.isatty()

    def entries(self, entries: Sequence[LogEntry]) -> None:
        """Access-log entries, in one write."""
        if not entries:
            return
        if self.as_json:
            lines = [json.dumps(entry_to_json(entry)) for entry in entries]
        else:
            lines = [entry_to_text(entry, self._paint_out) for entry in entries]
        self._write("\n".join(lines))

    def event(self, kind: str, message: str, data: Mapping[str, Any], role: str = "dim") -> None:
        """Something that happened to the command: `message` for people, all of it for programs."""
        if self.as_json:
            line = json.dumps({"event": kind, "message": message, **data}, ensure_ascii=False)
            self._write(line)
        else:
            prefix = paint(f"proxylib: {role}: ", role) if role in ("warning", "error") else ""
            prefix = prefix or paint("proxylib: ", role)
            self._write(
                f"{prefix if self._stderr_color else click.unstyle(prefix)}{message}", err=True
            )

    def _paint_out(self, text: str, role: str) -> str:
        return paint(text, role) if self._stdout_color else text

    def _write(self, line: str, *, err: bool = False) -> None:
        with self._lock:
            try:
                click.echo(line, err=err, color=True)
            except BrokenPipeError:
                # Whoever read us has gone (| head): end in order, and say nothing more.
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, (sys.stderr if err else sys.stdout).fileno())
                os.close(silence)
                os.kill(os.getpid(), signal.SIGTERM)


def paint(text: str, role: str) -> str:
    """`text` in the colours of its role."""
    return click.style(text, **_STYLES[role]) if role in _STYLES else text
