"""``proxylib parser``."""

from __future__ import annotations

import json
from typing import Any

import click

from node.parsers import is_for_tests
from proxylib.errors import RegistrationError
from proxylib.registry import get_parser_factory, parser_names


@click.group("parser")
def command() -> None:
    """The parsers that are installed."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.option("--all", "everything", is_flag=True, help="Also those for tests of proxies (test.*).")
def list_command(as_json: bool, everything: bool) -> None:
    """List the parsers that can be named, and the rule keys that policies may use.

    A parser that is installed but does not load is listed with the reason, and
    the exit status is 1.
    """
    names = [name for name in parser_names() if everything or not is_for_tests(name)]
    parsers = [_describe(name) for name in names]
    if as_json:
        click.echo(json.dumps(parsers, indent=2))
    else:
        for parser in parsers:
            _show(parser)
    if any(parser["error"] for parser in parsers):
        raise SystemExit(1)


def _describe(name: str) -> dict[str, Any]:
    try:
        factory = get_parser_factory(name)
    except RegistrationError as error:
        return {"name": name, "description": "", "rules": [], "error": str(error)}
    if factory is None:
        error_text = f"its entry point registers nothing named {name!r}"
        return {"name": name, "description": "", "rules": [], "error": error_text}
    rules = [
        {"key": key, "kind": field.kind, "description": field.doc}
        for key, field in factory.rule_class.fields.items()
    ]
    return {"name": name, "description": factory.description, "rules": rules, "error": None}


def _show(parser: dict[str, Any]) -> None:
    name = click.style(parser["name"], bold=True)
    if parser["error"]:
        click.echo(f"{name}  {click.style('does not load', fg='red')}: {parser['error']}")
        return
    click.echo(f"{name}  {parser['description']}".rstrip())
    for rule in parser["rules"]:
        click.echo(f"    {rule['key']:12} {rule['kind']:9} {rule['description']}".rstrip())
