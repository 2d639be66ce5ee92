"""``proxylib parser describe``."""

from __future__ import annotations

import json

import click

from node.kit.facts import ParserFacts, parser_facts, rule_schema
from node.parsers import choose_parser


@click.command("describe")
@click.argument("parser")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON document.")
@click.option("--schema", is_flag=True, help="Only the JSON schema of one L7 rule.")
def command(parser: str, as_json: bool, schema: bool) -> None:
    """Say what PARSER (a name, or a Python file) is: its rule keys and message properties."""
    facts = parser_facts(choose_parser(parser).name)
    if schema:
        click.echo(json.dumps(rule_schema(facts), indent=2))
    elif as_json:
        click.echo(json.dumps(facts.as_json(), indent=2))
    else:
        _show(facts)


def _show(facts: ParserFacts) -> None:
    click.echo(f"{click.style(facts.name, bold=True)}  {facts.description}".rstrip())
    click.echo(f"from {facts.origin} {facts.version}".rstrip())
    click.echo(f"bounds: {facts.posture}")
    if not facts.rules:
        click.echo("\nno rule keys: a policy can allow it whole, with l7: [{}]")
    else:
        click.echo("\nrule keys, and the message property that each tests:")
    for rule in facts.rules:
        click.echo(f"  {rule.key:14} {rule.kind:9} {rule.property:14} {rule.description}".rstrip())
        if rule.choices:
            click.echo(f"  {'':14} one of {', '.join(rule.choices)}")
    if facts.documentation:
        click.echo(f"\n{facts.documentation}")
