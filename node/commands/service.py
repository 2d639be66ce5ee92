"""``proxylib service``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table

_NAMESPACE = click.option("--namespace", default="", metavar="NAME", help="Its namespace.")


@click.group("service")
def command() -> None:
    """The services that policies select (toServices)."""


@command.command("list")
@remote
def list_command(socket_path: Path | None, as_json: bool) -> None:
    """List the services, and what they stand for."""
    with agent(socket_path) as client:
        services = client.call("GET", "service")
    if as_json:
        show_json(services)
        return
    rows = [
        (
            service.get("namespace", ""),
            service["name"],
            _pairs(service.get("labels", ())),
            _pairs(service.get("selector", ())),
            service.get("addresses", []),
        )
        for service in services
    ]
    show(table(("NAMESPACE", "NAME", "LABELS", "SELECTOR", "ADDRESSES"), rows))


@command.command("put")
@click.argument("name")
@_NAMESPACE
@click.option(
    "--selector",
    multiple=True,
    callback=lambda _context, _option, texts: dict(map(_pair, texts)),
    metavar="KEY=VALUE",
    help="It stands for the endpoints of its namespace that have this label, and all others given.",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="It stands for this address outside; several times.",
)
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Its own label; several times."
)
@remote
def put(
    name: str,
    namespace: str,
    selector: dict[str, str],
    addresses: tuple[str, ...],
    labels: tuple[str, ...],
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Have a service NAME, in place of the one of that name and namespace. Prints the revision."""
    entry: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": list(labels),
        "selector": selector,
        "addresses": list(addresses),
    }
    with agent(socket_path) as client:
        change = client.call("PUT", "service", json={k: v for k, v in entry.items() if v})
    _show_revision(change, as_json)


@command.command("delete")
@click.argument("name")
@_NAMESPACE
@remote
def delete(name: str, namespace: str, socket_path: Path | None, as_json: bool) -> None:
    """Forget the service NAME. Prints the revision. Exit status 1: there is none."""
    with agent(socket_path) as client:
        change = client.call("DELETE", "service", name, params={"namespace": namespace})
    _show_revision(change, as_json)


def _show_revision(change: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(change)
    else:
        click.echo(f"Revision: {change['revision']}")


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise click.BadParameter(f"{text!r} is no KEY=VALUE")
    return key, value


def _pairs(labels: Any) -> list[str]:
    """Labels of either spelling, as text."""
    if isinstance(labels, dict):
        return [f"{key}={value}" for key, value in labels.items()]
    return list(labels)
