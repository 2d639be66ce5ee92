"""`python -m benchmarks`: all measurements, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

NAMES = [protocol.name for protocol in protocols.PROTOCOLS]

Measured = tuple[list[Any], str]
"""Rows, and the table that they make."""

Measure = Callable[[Path, int, float], Measured]
"""Of a folder to work in, rounds, and how much traffic."""


def _table(module: Any) -> Measure:
    """What measures and shows in the usual way."""

    def measure(folder: Path, rounds: int, scale: float) -> Measured:
        rows = module.measure(folder, rounds, scale)
        return [*rows], module.show(rows)

    return measure


def _without_rounds(module: Any) -> Measure:
    def measure(folder: Path, rounds: int, scale: float) -> Measured:
        rows = module.measure(folder, scale)
        return [*rows], module.show(rows)

    return measure


def _calls(folder: Path, rounds: int, scale: float) -> Measured:
    rows = calls.measure(folder, int(200_000 * scale))
    return [*rows], calls.show(rows)


def _sandbox(folder: Path, rounds: int, scale: float) -> Measured:
    budget = sandbox.measure_budget(folder, scale)
    sides = sandbox.measure_isolation(folder, rounds, scale)
    return [budget, *sides], f"{sandbox.show_budget(budget)}\n\n{sandbox.show(sides)}"


TABLES: dict[str, Measure] = {
    "calls": _calls,
    "policy": _without_rounds(policy),
    "sandbox": _sandbox,
    "reload": _table(reloading),
    "packets": _without_rounds(packets),
    "node": _table(node),
    "sidecars": _table(sidecars),
    "sockmap": _table(sockmap),
    "proxying": _table(proxying),
}
"""By the names of `--only`; the lines of protocols are one more."""

OF_A_NODE = ("packets", "node", "sidecars", "sockmap")
"""Those that need root."""


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Interleaved rounds to take the median of."
)
@click.option("--scale", default=1.0, show_default=True, help="How much traffic a round has.")
@click.option(
    "--only",
    type=click.Choice(["all", *TABLES, "protocols", *NAMES]),
    default="all",
    help="One table only, or the lines of one protocol.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(rounds: int, scale: float, only: str, as_json: bool) -> None:
    """Measure the data path against Envoy's tcp_proxy, and the C ABI. About 10 minutes."""
    for program in ("gcc", "memcached"):
        need(program)
    found: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as path:
        folder = Path(path)
        for name, measure in TABLES.items():
            if only not in ("all", name):
                continue
            if only == "all" and name in OF_A_NODE and os.geteuid() != 0:
                click.echo(f"{name}: left out, it needs root", err=True)
                continue
            found[name], table = measure(folder, rounds, scale)
            _show(table, as_json)
        if only in ("all", "protocols", *NAMES):
            wanted = [name for name in NAMES if only not in NAMES or name.startswith(only)]
            lines = protocols.measure(folder, wanted, rounds, scale)
            found["protocols"] = [*lines]
            _show(protocols.show(lines), as_json)
    if as_json:
        tables = {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()}
        click.echo(json.dumps(tables))


def _show(table: str, as_json: bool) -> None:
    if not as_json:
        click.echo(table + "\n")


if __name__ == "__main__":
    main()
