"""``proxylib parser status``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from node.commands.control_option import CONTROL
from node.errors import SetupError
from proxylib.errors import ProxylibError


@click.command("status")
@CONTROL
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def command(control: Path, as_json: bool) -> None:
    """Show the parsers of a running proxy: connections of each generation, and breakers."""
    from proxylib.control import ask

    try:
        parsers = ask(control, {"command": "status"})["parsers"]
    except (ProxylibError, OSError, ValueError, KeyError) as error:
        raise SetupError(f"no proxy answers at {control}: {error}") from error
    if as_json:
        click.echo(json.dumps(parsers, indent=2))
        return
    for name, parser in parsers.items():
        counts = parser["generations"].items()
        told = ", ".join(f"{count} on generation {number}" for number, count in counts)
        breaker = f"breaker {parser['breaker']}, {parser['panics']} panics"
        click.echo(f"{name:16} connections: {told or 'none'}; {breaker}")
        for process in parser["processes"]:
            count, number = process["connections"], process["generation"]
            click.echo(f"{'':16} process {process['pid']}: {count} on generation {number}")
