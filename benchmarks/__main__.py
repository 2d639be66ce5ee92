"""`python -m benchmarks`: all measurements, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import click

from benchmarks import (
    calls,
    node,
    packets,
    policy,
    protocols,
    proxying,
    reloading,
    sandbox,
    sidecars,
    sockmap,
)
from benchmarks.tools import need

TABLES = (
    "all",
    "calls",
    "proxying",
    "policy",
    "sandbox",
    "reload",
    "node",
    "packets",
    "sidecars",
    "sockmap",
    "protocols",
)
NAMES = [protocol.name for protocol in protocols.PROTOCOLS]


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Interleaved rounds to take the median of."
)
@click.option("--scale", default=1.0, show_default=True, help="How much traffic a round has.")
@click.option(
    "--only",
    type=click.Choice([*TABLES, *NAMES]),
    default="all",
    help="One table only, or the lines of one protocol.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(rounds: int, scale: float, only: str, as_json: bool) -> None:
    """Measure the data path against Envoy's tcp_proxy, and the C ABI. About 4 minutes."""
    for program in ("gcc", "memcached"):
        need(program)
    found: dict[str, list[object]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        if only in ("all", "calls"):
            rows = calls.measure(folder, int(200_000 * scale))
            found["calls"] = [*rows]
            _show(calls.show(rows), as_json)
        if only in ("all", "policy"):
            costs = policy.measure(folder, scale)
            found["policy"] = [*costs]
            _show(policy.show(costs), as_json)
        if only in ("all", "sandbox"):
            budget = sandbox.measure_budget(folder, scale)
            sides = sandbox.measure_isolation(folder, rounds, scale)
            found["sandbox"] = [budget, *sides]
            _show(f"{sandbox.show_budget(budget)}\n\n{sandbox.show(sides)}", as_json)
        if only in ("all", "reload"):
            states = reloading.measure(folder, rounds, scale)
            found["reload"] = [*states]
            _show(reloading.show(states), as_json)
        if only in ("all", "node"):
            ways = node.measure(folder, rounds, scale)
            found["node"] = [*ways]
            _show(node.show(ways), as_json)
        if only in ("all", "packets"):
            costs_of = packets.measure(folder, scale)
            found["packets"] = [*costs_of]
            _show(packets.show(costs_of), as_json)
        if only in ("all", "sidecars"):
            modes = sidecars.measure(folder, rounds, scale)
            found["sidecars"] = [*modes]
            _show(sidecars.show(modes), as_json)
        if only in ("all", "sockmap"):
            pairs = sockmap.measure(folder, rounds, scale)
            found["sockmap"] = [*pairs]
            _show(sockmap.show(pairs), as_json)
        if only in ("all", "protocols", *NAMES):
            wanted = [name for name in NAMES if only not in NAMES or name.startswith(only)]
            lines = protocols.measure(folder, wanted, rounds, scale)
            found["protocols"] = [*lines]
            _show(protocols.show(lines), as_json)
        if only in ("all", "proxying"):
            loads = proxying.measure(folder, rounds, scale)
            found["proxying"] = [*loads]
            _show(proxying.show(loads), as_json)
    if as_json:
        tables = {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()}
        click.echo(json.dumps(tables))


def _show(table: str, as_json: bool) -> None:
    if not as_json:
        click.echo(table + "\n")


if __name__ == "__main__":
    main()
