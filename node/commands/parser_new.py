"""``proxylib parser new``."""

from __future__ import annotations

from pathlib import Path

import click

from node.kit.scaffold import FRAMINGS, module_name, new_parser

_ABOUT = "; ".join(f"{name}: {about}" for name, about in FRAMINGS.items())


@click.command("new")
@click.argument("name")
@click.option(
    "--framing",
    type=click.Choice(list(FRAMINGS)),
    default="line",
    show_default=True,
    help=f"How messages are delimited. {_ABOUT}.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to put it [default: ./proxylib-NAME].",
)
def command(name: str, framing: str, folder: Path | None) -> None:
    """Begin a parser called NAME: a package that works, with tests that pass.

    NAME is what policies will call it (l7proto: NAME).
    """
    module = module_name(name)
    target = folder or Path(module.replace("_", "-"))
    for path in new_parser(name, target, framing):
        click.echo(path)
    click.echo(f"\nnext: edit {target}/{module}.py, then\n  proxylib parser test {target}")
