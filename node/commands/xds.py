"""``proxylib xds``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table


@click.group("xds")
def command() -> None:
    """The control server, and those who get their policies from it."""


@command.command("status")
@remote
def status(socket_path: Path | None, as_json: bool) -> None:
    """Show which version every subscriber has, and what it refused and why.

    Exit status: 0 nobody refuses anything, 1 a connected subscriber does.
    """
    with agent(socket_path) as client:
        xds = client.call("GET", "xds")
    streams = xds["streams"]
    if as_json:
        show_json(xds)
    else:
        rows = [
            (
                stream["node"],
                stream["type"],
                _state(stream),
                str(stream["sent"]),
                str(stream["acked"]),
                stream["refused"],
                stream["reason"].splitlines(),
            )
            for stream in streams
        ]
        header = ("NODE", "TYPE", "STATE", "SENT", "ACKED", "RESOURCES", "REASON")
        show(table(header, rows))
    if any(_state(stream) == "refused" for stream in streams):
        raise SystemExit(1)


def _state(stream: dict[str, Any]) -> str:
    if not stream["connected"]:
        return "gone"
    if stream["nacked"] > stream["acked"]:
        return "refused"
    return "in force" if stream["acked"] == stream["sent"] else "waiting"
