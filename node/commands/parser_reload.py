"""``proxylib parser reload``."""

from __future__ import annotations

from pathlib import Path

import click

from node.commands.control_option import CONTROL
from node.errors import SetupError
from proxylib.errors import ProxylibError


@click.command("reload")
@click.argument("name")
@CONTROL
@click.option(
    "--drain",
    type=click.FloatRange(0, 86400),
    metavar="SECONDS",
    help="Close connections that still have the old code after that time [default: never].",
)
def command(name: str, control: Path, drain: float | None) -> None:
    """Load the code of the running parser NAME anew, under its connections.

    New connections get the new code, running ones keep the old (or migrate, if the
    parser can: docs/reload.md). Code that does not load, fails its own check, or does
    not know the rules in force is refused, and the old goes on.

    Exit status: 0 reloaded, 1 refused.
    """
    from proxylib.control import ask

    try:
        answer = ask(control, {"command": "reload", "parser": name, "drain": drain})
    except ProxylibError as error:
        click.echo(f"{click.style('refused', fg='red')}: {error}", err=True)
        raise SystemExit(1) from None
    except (OSError, ValueError) as error:
        raise SetupError(f"no proxy answers at {control}: {error}") from error
    click.echo(f"reloaded {', '.join(answer['parsers'])}")
