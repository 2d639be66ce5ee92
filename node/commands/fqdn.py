"""``proxylib fqdn``."""

from __future__ import annotations

from pathlib import Path

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table


@click.group("fqdn")
def command() -> None:
    """What is known of the DNS names that policies select (toFQDNs)."""


@command.command("list")
@remote
def list_command(socket_path: Path | None, as_json: bool) -> None:
    """List the DNS names that are known, and their addresses."""
    with agent(socket_path) as client:
        names = client.call("GET", "fqdn")
    if as_json:
        show_json(names)
    else:
        show(table(("NAME", "ADDRESSES"), [(n["name"], n["addresses"]) for n in names]))


@command.command("set")
@click.argument("name")
@click.argument("addresses", nargs=-1, required=True, metavar="IP...")
@remote
def set_command(
    name: str, addresses: tuple[str, ...], socket_path: Path | None, as_json: bool
) -> None:
    """Say that NAME has these addresses now, and no others. Prints the revision."""
    with agent(socket_path) as client:
        change = client.call("PUT", "fqdn", name, json={"addresses": list(addresses)})
    if as_json:
        show_json(change)
    else:
        click.echo(f"Revision: {change['revision']}")


@command.command("delete")
@click.argument("name")
@remote
def delete(name: str, socket_path: Path | None, as_json: bool) -> None:
    """Forget NAME. Prints the revision. Exit status 1: nothing is known of it."""
    with agent(socket_path) as client:
        change = client.call("DELETE", "fqdn", name)
    if as_json:
        show_json(change)
    else:
        click.echo(f"Revision: {change['revision']}")
