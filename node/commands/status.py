"""``proxylib status``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from node.commands.remote import agent, remote, show_json
from node.tables import lines, show


@click.command("status")
@click.option("--brief", is_flag=True, help='Only "Ok", or what is not.')
@click.option("-v", "--verbose", is_flag=True, help="More about each part.")
@remote
def command(brief: bool, verbose: bool, socket_path: Path | None, as_json: bool) -> None:
    """How the agent and its parts are.

    Exit status: 0 all is well (warnings included), 1 a part has failed, 3 no agent.
    """
    with agent(socket_path) as client:
        health = client.call("GET", "healthz")
    if as_json:
        show_json(health)
    elif brief:
        bad = [c for c in health["components"] if c["state"] in ("Warning", "Failure")]
        show(lines((c["name"], _value(c)) for c in bad) or "Ok")
    else:
        show(lines(pair for c in health["components"] for pair in _pairs(c, verbose)))
    if health["state"] == "Failure":
        raise SystemExit(1)


def _pairs(component: dict[str, Any], verbose: bool) -> Iterator[tuple[str, str]]:
    yield component["name"], _value(component)
    if verbose:
        yield from (("", detail) for detail in component["details"])


def _value(component: dict[str, Any]) -> str:
    state, message = component["state"], component["message"]
    if component["name"] == "Proxy Status":
        return f"{state.upper()}, {message}"
    if component["name"] in ("Controller Status", "NodeMonitor"):
        return str(message)
    return f"{state}   {message}"
