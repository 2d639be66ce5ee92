"""``proxylib ip``."""

from __future__ import annotations

from pathlib import Path

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table


@click.group("ip")
def command() -> None:
    """Which identity an address has."""


@command.command("list")
@remote
def list_command(socket_path: Path | None, as_json: bool) -> None:
    """List addresses and ranges with their identity; all others are the world's (2)."""
    with agent(socket_path) as client:
        entries = client.call("GET", "ip")
    if as_json:
        show_json(entries)
        return
    rows = [
        (entry["cidr"], str(entry["identity"]), str(entry["endpoint"] or "")) for entry in entries
    ]
    show(table(("IP", "IDENTITY", "ENDPOINT"), rows))
