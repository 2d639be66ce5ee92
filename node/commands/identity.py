"""``proxylib identity``."""

from __future__ import annotations

from pathlib import Path

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table


@click.group("identity")
def command() -> None:
    """Security identities: a number for each set of labels."""


@command.command("list")
@remote
def list_command(socket_path: Path | None, as_json: bool) -> None:
    """List the identities that this node knows, reserved ones included."""
    with agent(socket_path) as client:
        identities = client.call("GET", "identity")
    if as_json:
        show_json(identities)
        return
    rows = [(str(i["id"]), i["labels"], str(i["endpoints"])) for i in identities]
    show(table(("ID", "LABELS", "ENDPOINTS"), rows))


@command.command("get")
@click.argument("number", type=click.IntRange(0), metavar="ID")
@remote
def get(number: int, socket_path: Path | None, as_json: bool) -> None:
    """Print the labels of one identity. Exit status 1: there is no such one."""
    with agent(socket_path) as client:
        identity = client.call("GET", "identity", number)
    if as_json:
        show_json(identity)
    else:
        show("\n".join(identity["labels"]))
