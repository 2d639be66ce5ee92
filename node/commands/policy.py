"""``proxylib policy``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.commands import policies, trace
from node.console import Console
from node.parsers import choose_parser
from node.stopping import MAX_WAIT, Stopped, stop_on_signals

if TYPE_CHECKING:
    from xds.source import Problem

_FILE = click.Path(path_type=Path)
_PARSERS = click.option(
    "--parser",
    "parsers",
    multiple=True,
    metavar="FILE.py",
    help="A parser of your own that the policies name; may be given several times.",
)


@click.group("policy")
def command() -> None:
    """Check policy documents, have an agent enforce them, or serve them yourself."""


for _remote in (
    policies.import_command,
    policies.get,
    policies.delete,
    policies.wait_command,
    policies.selectors,
    trace.command,
):
    command.add_command(_remote)


@command.command("validate")
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@click.option("--endpoints", type=_FILE, metavar="FILE", help="Who there is; checked as well.")
@_PARSERS
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def validate(
    files: tuple[Path, ...], endpoints: Path | None, parsers: tuple[str, ...], as_json: bool
) -> None:
    """Say everything that is wrong with policy documents, with file, line and column.

    The parsers' own rules are checked too: unknown keys, bad values, bad regexes.
    With --endpoints the policies are compiled for these endpoints, and labels that
    select nobody are warned about.

    Exit status: 0 the policies can be put in force (warnings included), 1 they cannot.
    """
    for parser in parsers:
        choose_parser(parser)
    errors, warnings = _validate(files, endpoints)
    if as_json:
        result = {
            "valid": not errors,
            "errors": [_plain(problem) for problem in errors],
            "warnings": [_plain(problem) for problem in warnings],
        }
        click.echo(json.dumps(result, indent=2))
    else:
        for problem in errors:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}")
        for problem in warnings:
            click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {problem}")
        click.echo(_summary(len(files), len(errors), len(warnings)))
    if errors:
        raise SystemExit(1)


@command.command("schema")
@_PARSERS
def schema(parsers: tuple[str, ...]) -> None:
    """Print a JSON schema of policy documents, for editors.

    An editor with YAML's language server takes it from a document's first line:
    # yaml-language-server: $schema=policy.schema.json
    """
    from xds.schema import document_schema

    for parser in parsers:
        choose_parser(parser)
    click.echo(json.dumps(document_schema(), indent=1))


@command.command("serve")
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@click.option("--socket", "socket_path", required=True, type=_FILE, metavar="PATH")
@click.option("--endpoints", type=_FILE, metavar="FILE", help="Which address has which labels.")
@_PARSERS
def serve(
    files: tuple[Path, ...], socket_path: Path, endpoints: Path | None, parsers: tuple[str, ...]
) -> None:
    """Serve policies to an Envoy that you start yourself, on the Unix socket --socket.

    Edits of the files are taken up; a bad one is reported, and the rules before it
    stay. Ctrl-C ends it: Envoy then keeps the last rules.
    """
    from xds.control import ControlServer

    for parser in parsers:
        choose_parser(parser)

    def tell(problems: Iterable[object], role: str) -> None:
        for problem in problems:
            console.event("policy", str(problem), {}, role)

    def changed(warnings: Sequence[Problem]) -> None:
        tell(warnings, "warning")
        console.event("policy", "the edit is served", {}, "good")

    console = Console()
    control = ControlServer(
        socket_path,
        files,
        endpoints,
        watch_files=True,
        on_error=lambda error: tell([error], "error"),
        on_change=changed,
    )
    with suppress(Stopped), stop_on_signals():
        tell(control.start(), "warning")
        try:
            console.event("policy", f"serving at {socket_path}", {}, "good")
            while True:
                time.sleep(MAX_WAIT)
        finally:
            control.stop()


def _validate(
    files: tuple[Path, ...], endpoints: Path | None
) -> tuple[list[Problem], list[Problem]]:
    from xds.control import ControlServer
    from xds.source import DocumentError

    # Loaded as the control server loads them, without the server.
    control = ControlServer(Path("unused"), files, endpoints)
    try:
        return [], list(control.reload())
    except DocumentError as error:
        return list(error.problems), []


def _plain(problem: Problem) -> dict[str, Any]:
    return {**asdict(problem.place), "message": problem.message}


def _summary(files: int, errors: int, warnings: int) -> str:
    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    return f"{count(files, 'file')}: {count(errors, 'error')}, {count(warnings, 'warning')}"
