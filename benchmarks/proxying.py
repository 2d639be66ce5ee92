"""What the filter costs inside Envoy: CPU per request and latency, by pipelining depth.

Four Envoys stand in front of the same server: tcp_proxy alone, a parser that passes
everything, memcache with a policy, and the same with an access log and a consumer.
They take turns, several rounds, so that the machine's mood hits all of them alike;
figures are medians, ratios are to tcp_proxy in the same round.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tools import (
    SERVER,
    Sample,
    Traffic,
    compile_tool,
    control_server,
    envoy,
    memcached,
    process,
    responder,
    run_load,
)

VALUE = b"0123456789"
REPLY = b"VALUE k 0 10\r\n0123456789\r\nEND\r\n"
RULES = [{"command": "get", "keyRegex": "^k[0-9]*$"}]
REACH = {
    ("batching", 1, "memcache"): "<= 1.35 x",
    ("batching", 1, "memcache, log"): "<= 1.7 x",
    ("batching", 64, "memcache, log"): "<= 6 us",
    ("1 MiB", 1, "memcache, log"): "<= 1.05 x",
}


@dataclass(frozen=True)
class Load:
    """One kind of traffic."""

    upstream: str
    depth: int
    connections: int
    requests: int
    request: bytes
    reply_bytes: int


@dataclass(frozen=True)
class Row:
    """The median of one variant under one load."""

    upstream: str
    depth: int
    variant: str
    cpu_us: float
    ratio: float
    p50_us: float
    p99_us: float


def loads(scale: float) -> list[Load]:
    """The traffic of one round; `scale` 1 takes about a second each."""
    value = b"get k\r\n"
    big = len(b"VALUE k 0 1048576\r\n\r\nEND\r\n") + (1 << 20)
    fresh = b"get k########\r\n"
    miss = len(b"END\r\n")
    counts = {1: 40_000, 16: 160_000, 64: 320_000}
    found = [
        Load("batching", depth, 32, int(scale * n), fresh, len(REPLY))
        for depth, n in counts.items()
    ]
    real = [
        Load("memcached", depth, 32, int(scale * n / 2), fresh, miss) for depth, n in counts.items()
    ]
    # In several short turns: large values feel the machine's mood most.
    large = [Load("1 MiB", 1, 4, int(scale * 600), value, big)] * 5
    return [*found, *real, *large]


def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """All variants under all loads."""
    tool = compile_tool("load", folder)
    samples: dict[tuple[Load, str], list[Sample]] = {}
    with ExitStack() as stack:
        enter = stack.enter_context
        batching = enter(responder(tool, folder, REPLY))
        real = enter(memcached(folder))
        fill(real)
        xds = enter(control_server(folder, "memcache", RULES))
        passer_xds = enter(control_server(folder, "test.passer", []))
        sock = folder / "log.sock"
        enter(process(tool, "consumer", sock, log=folder / "c.log"))
        memcache = {"parser": "memcache", "xds_path": str(xds)}
        variants = {
            "tcp_proxy": None,
            "passes all": {"parser": "test.passer", "xds_path": str(passer_xds)},
            "memcache": memcache,
            "memcache, log": {**memcache, "access_log_path": str(sock)},
        }
        ports: dict[tuple[str, str], tuple[int, int]] = {}
        for upstream, port in {"batching": batching, "memcached": real}.items():
            for name, config in variants.items():
                key = f"{upstream}-{name}".replace(" ", "").replace(",", "-")
                ports[upstream, name] = enter(envoy(folder, key, port, config))
        for count in range(rounds + 1):
            for load in loads(scale if count else scale / 10):
                for name in variants:
                    where = "memcached" if load.upstream != "batching" else "batching"
                    pid, port = ports[where, name]
                    traffic = Traffic(load.request * load.depth, load.depth, load.reply_bytes)
                    sample = run_load(tool, traffic, load.connections, load.requests, port, pid)
                    if count:
                        samples.setdefault((load, name), []).append(sample)
    return summarize(samples)


def fill(port: int) -> None:
    """Store the large value."""
    from pymemcache.client.base import Client

    client = Client((SERVER, port))
    client.set("k", bytes(1 << 20), noreply=False)
    client.close()


def summarize(samples: dict[tuple[Load, str], list[Sample]]) -> list[Row]:
    rows = []
    for (load, name), found in samples.items():
        base = samples[load, "tcp_proxy"]
        ratios = [one.cpu_us / other.cpu_us for one, other in zip(found, base, strict=True)]
        cpu, p50, p99 = (
            statistics.median(getattr(one, what) for one in found)
            for what in ("cpu_us", "p50_us", "p99_us")
        )
        rows.append(Row(load.upstream, load.depth, name, cpu, statistics.median(ratios), p50, p99))
    return rows


def show(rows: list[Row]) -> str:
    """The table, with what we want to reach."""
    lines = [
        "upstream    depth  variant          CPU/request   x tcp_proxy      p50        p99   reach",
    ]
    for row in rows:
        reach = REACH.get((row.upstream, row.depth, row.variant), "")
        lines.append(
            f"{row.upstream:<10} {row.depth:>6}  {row.variant:<14} {row.cpu_us:>10.2f} us"
            f" {row.ratio:>10.2f} x {row.p50_us:>9.0f} us {row.p99_us:>7.0f} us   {reach}"
        )
    return "\n".join(lines)
