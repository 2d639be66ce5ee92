"""What reloads cost those who are served: the latency of a load while its parser is reloaded.

One Envoy, one load, with and without a reload every PAUSE seconds, in turn; the figures are
medians of the rounds, the ratio is of those of a round.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from proxylib.control import ask

PARSER = "memcache"
PAUSE = 0.2
REQUESTS = 40_000
CONNECTIONS = 32
REACH = 1.5


@dataclass(frozen=True)
class Row:
    """The latencies of one load, and how often the parser was reloaded in a round of it."""

    variant: str
    reloads: float
    p50_us: float
    p99_us: float
    ratio: float
    """Of the p99 to that without reloads."""


def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """The load without and with reloads, in turn; the first round warms up."""
    tool = compile_tool("load", folder)
    control = folder / "control.sock"
    traffic = Traffic(b"get k########\r\n", 1, len(REPLY))
    plain: list[Sample] = []
    reloaded: list[Sample] = []
    counts: list[int] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(responder(tool, folder, REPLY))
        xds = stack.enter_context(control_server(folder, PARSER, RULES))
        config = {"parser": PARSER, "xds_path": str(xds), "control_path": str(control)}
        pid, port = stack.enter_context(envoy(folder, "reloaded", upstream, config))
        for _ in range(rounds + 1):
            plain.append(run_load(tool, traffic, CONNECTIONS, int(scale * REQUESTS), port, pid))
            with _reloads(control) as done:
                reloaded.append(
                    run_load(tool, traffic, CONNECTIONS, int(scale * REQUESTS), port, pid)
                )
            counts.append(len(done))
    ratios = [b.p99_us / a.p99_us for a, b in zip(plain, reloaded, strict=True)]
    return [
        _row("at rest", 0, plain[1:], [1.0]),
        _row("reloaded", statistics.mean(counts[1:]), reloaded[1:], ratios[1:]),
    ]


@contextmanager
def _reloads(control: Path) -> Iterator[list[object]]:
    """Reloads the parser again and again; gives the answers."""
    stop = threading.Event()
    done: list[object] = []

    def run() -> None:
        while not stop.wait(PAUSE):
            done.append(ask(control, {"command": "reload", "parser": PARSER}))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def _row(variant: str, reloads: float, samples: list[Sample], ratios: list[float]) -> Row:
    return Row(
        variant,
        reloads,
        statistics.median(sample.p50_us for sample in samples),
        statistics.median(sample.p99_us for sample in samples),
        statistics.median(ratios),
    )


def show(rows: list[Row]) -> str:
    lines = ["memcache      reloads       p50        p99   x at rest   reach"]
    lines += [
        f"{row.variant:<12} {row.reloads:>8.1f} {row.p50_us:>6.0f} us {row.p99_us:>7.0f} us"
        f" {row.ratio:>9.2f} x" + (f"   <= {REACH} x" if row.reloads else "")
        for row in rows
    ]
    return "\n".join(lines)
