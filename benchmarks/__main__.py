"""`python -m benchmarks`: all measurements, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import click

from benchmarks import calls, proxying
from benchmarks.tools import need


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Interleaved rounds to take the median of."
)
@click.option("--scale", default=1.0, show_default=True, help="How much traffic a round has.")
@click.option("--only", type=click.Choice(["proxying", "calls"]), help="One table only.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(rounds: int, scale: float, only: str | None, as_json: bool) -> None:
    """Measure the data path against Envoy's tcp_proxy, and the C ABI. About 2 minutes."""
    for program in ("gcc", "memcached"):
        need(program)
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        call_rows = calls.measure(folder, int(200_000 * scale)) if only != "proxying" else []
        if call_rows and not as_json:
            click.echo(calls.show(call_rows) + "\n")
        proxy_rows = proxying.measure(folder, rounds, scale) if only != "calls" else []
        if proxy_rows and not as_json:
            click.echo(proxying.show(proxy_rows))
    if as_json:
        rows = {
            "calls": [dataclasses.asdict(row) for row in call_rows],
            "proxying": [dataclasses.asdict(row) for row in proxy_rows],
        }
        click.echo(json.dumps(rows))


if __name__ == "__main__":
    main()
