"""``proxylib monitor``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node import console
from node.commands.remote import F, agent, remote
from node.errors import SetupError
from node.monitor.hub import TYPES
from node.monitor.lines import line
from node.stopping import Stopped, stop_on_signals
from node.tables import safe

if TYPE_CHECKING:
    from node.client import AgentClient

_PAUSE = 0.5
"""Seconds between two looks for the next agent."""


def _endpoints(name: str, argument: str, text: str) -> Callable[[F], F]:
    number = click.IntRange(0, 65535)
    return click.option(name, argument, multiple=True, type=number, metavar="ID", help=text)


@click.command("monitor")
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice(TYPES),
    help="Only entries of this type; several times. [default: all]",
)
@click.option("-v", "verbose", count=True, help="Labels of both ends; -vv: time and addresses too.")
@_endpoints("--related-to", "related", "Only what is about this endpoint; several times.")
@_endpoints("--from", "source", "Only what comes from this endpoint.")
@_endpoints("--to", "destination", "Only what goes to this endpoint.")
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many entries, status 0."
)
@remote
def command(
    types: tuple[str, ...],
    verbose: int,
    related: tuple[int, ...],
    source: tuple[int, ...],
    destination: tuple[int, ...],
    count: int | None,
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Watch what happens on the node, as it happens, one line for each entry.

    \b
    l7              what parsers decided about requests, and the replies to them
    drop            packets that were dropped, and why
    trace           how connections went: new, answered, closed
    policy-verdict  what the policy said about each new connection

    ID is an endpoint's number, 0 for whatever is not of this node. --json prints the
    entries as the agent gives them (docs/monitor.md). If the agent ends, it says so and
    goes on with the next one. Ctrl-C ends it, exit status 0.
    """
    wanted = {"type": types, "related-to": related, "from": source, "to": destination}
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    paint = console.paint if colour else _plain
    shown = 0
    with suppress(Stopped), stop_on_signals(), agent(socket_path) as client:
        for entry in _entries(client, wanted):
            if as_json:
                click.echo(json.dumps(entry, ensure_ascii=False))
            elif entry["type"] == "start":
                click.echo(f"proxylib: watching {safe(entry['node'])}; Ctrl-C ends it", err=True)
            else:
                click.echo(line(entry, verbose, paint), color=colour)
            shown += entry["type"] in TYPES
            if shown == count:
                return


def _entries(client: AgentClient, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of an agent, and of each that comes after it. Raises NodeError."""
    from node.client import Gone

    yield from _until_it_ends(client, wanted)
    while True:
        time.sleep(_PAUSE)
        # Not there yet, or in the middle of ending or of starting.
        with suppress(SetupError, Gone):
            yield from _until_it_ends(client, wanted)


def _until_it_ends(client: AgentClient, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from node.client import Gone

    begun = False
    try:
        for entry in client.stream("monitor", params=wanted):
            begun = True
            yield entry
    except Gone as error:
        if not begun:
            raise
        yield {"type": "end", "reason": str(error)}


def _plain(text: str, role: str) -> str:
    return text
