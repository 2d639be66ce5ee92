"""``proxylib parser list``."""

from __future__ import annotations

import json

import click

from node.kit.facts import ParserFacts, parser_facts
from node.parsers import is_for_tests
from proxylib.registry import parser_names


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@click.option("--all", "everything", is_flag=True, help="Also those for tests of proxies (test.*).")
def command(as_json: bool, everything: bool) -> None:
    """List the parsers that can be named, where they come from, and their rule keys.

    A parser that is installed but does not load is listed with the reason, and
    the exit status is 1.
    """
    names = [name for name in parser_names() if everything or not is_for_tests(name)]
    parsers = [parser_facts(name) for name in names]
    if as_json:
        click.echo(json.dumps([parser.as_json() for parser in parsers], indent=2))
    else:
        for parser in parsers:
            _show(parser)
    if any(parser.error for parser in parsers):
        raise SystemExit(1)


def _show(parser: ParserFacts) -> None:
    name = click.style(parser.name, bold=True)
    if parser.error:
        click.echo(f"{name}  {click.style('does not load', fg='red')}: {parser.error}")
        return
    click.echo(f"{name}  {parser.description}".rstrip())
    told = f"    {parser.origin} {parser.version}".rstrip()
    click.echo(click.style(f"{told}; {parser.posture}", dim=True))
    for rule in parser.rules:
        click.echo(f"    {rule.key:12} {rule.kind:9} {rule.description}".rstrip())
