"""``proxylib metrics``."""

from __future__ import annotations

from pathlib import Path

import click

from node.commands.remote import agent, remote, show_json
from node.tables import show, table


@click.group("metrics")
def command() -> None:
    """The agent's counters, as Prometheus reads them from /v1/metrics."""


@command.command("list")
@click.option("--match", default="", metavar="TEXT", help="Only metrics with it in their names.")
@remote
def list_command(match: str, socket_path: Path | None, as_json: bool) -> None:
    """List every metric with its labels and value."""
    from prometheus_client.parser import text_string_to_metric_families

    with agent(socket_path) as client:
        text = client.call("GET", "metrics")
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        # When a counter began is for Prometheus only.
        if match in sample.name and not sample.name.endswith("_created")
    ]
    if as_json:
        show_json([{"name": s.name, "labels": s.labels, "value": s.value} for s in samples])
        return
    rows = [
        (s.name, " ".join(f'{k}="{v}"' for k, v in sorted(s.labels.items())), f"{s.value:.6f}")
        for s in samples
    ]
    show(table(("Metric", "Labels", "Value"), rows))
