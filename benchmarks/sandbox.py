"""What the sandbox costs: time budgets in every call, isolation in every chunk.

A budget's cost is that of marking a call's begin and end, which is all that it adds
to a call in time; it is put beside what a call of r2d2 takes as a whole.  An isolated
parser is measured behind Envoy, in turn with the same parser inside Envoy; its CPU is
that of both processes.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import calls
from benchmarks.proxying import REPLY, RULES
from benchmarks.tools import (
    Sample,
    Traffic,
    compile_tool,
    control_server,
    envoy,
    responder,
    run_load,
)
from proxylib.sandbox.native import load

PAIRS = 5_000_000
LOADS = ((1, 20_000), (16, 80_000), (64, 160_000))
ISOLATED = {"isolation": "process"}


@dataclass(frozen=True)
class Budget:
    """Nanoseconds of a budget per call, and of a whole call."""

    budget_ns: float
    call_ns: float

    @property
    def percent(self) -> float:
        return 100 * self.budget_ns / self.call_ns


@dataclass(frozen=True)
class Row:
    """The median of one variant at one depth of pipelining."""

    variant: str
    depth: int
    cpu_us: float
    p50_us: float
    p99_us: float


def measure_budget(folder: Path, scale: float) -> Budget:
    """Of five rounds, the median."""
    module = load()
    if module is None:
        raise RuntimeError("the library has not been built")
    pairs = int(PAIRS * scale)
    rounds = [module.guard_ns(pairs) for _ in range(5)]
    rows = {row.name: row for row in calls.measure(folder, int(100_000 * scale))}
    return Budget(statistics.median(rounds), rows["r2d2 READ"].reply_ns)


def measure_isolation(folder: Path, rounds: int, scale: float) -> list[Row]:
    """memcache in Envoy and beside it, in turn; the first round warms up."""
    tool = compile_tool("load", folder)
    samples: dict[tuple[str, int], list[Sample]] = {}
    with ExitStack() as stack:
        enter = stack.enter_context
        upstream = enter(responder(tool, folder, REPLY))
        xds = enter(control_server(folder, "memcache", RULES))
        inside = {"parser": "memcache", "xds_path": str(xds)}
        proxies = {
            "in process": enter(envoy(folder, "inside", upstream, inside)),
            "isolated": enter(envoy(folder, "outside", upstream, {**inside, **ISOLATED})),
        }
        for count in range(rounds + 1):
            for depth, requests in LOADS:
                traffic = Traffic(b"get k########\r\n" * depth, depth, len(REPLY))
                for name, (pid, port) in proxies.items():
                    sample = run_load(tool, traffic, 32, int(scale * requests), port, pid)
                    if count:
                        samples.setdefault((name, depth), []).append(sample)
    return [
        Row(
            name,
            depth,
            statistics.median(sample.cpu_us for sample in taken),
            statistics.median(sample.p50_us for sample in taken),
            statistics.median(sample.p99_us for sample in taken),
        )
        for (name, depth), taken in samples.items()
    ]


def show_budget(budget: Budget) -> str:
    return (
        f"time budget: {budget.budget_ns:.1f} ns per call, {budget.percent:.2f} % of a call of"
        f" r2d2 that takes {budget.call_ns:.0f} ns   <= 2 %"
    )


def show(rows: list[Row]) -> str:
    lines = ["memcache      depth  CPU/request       p50        p99"]
    lines += [
        f"{row.variant:<12} {row.depth:>6} {row.cpu_us:>9.2f} us {row.p50_us:>6.0f} us"
        f" {row.p99_us:>7.0f} us"
        for row in rows
    ]
    return "\n".join(lines)
