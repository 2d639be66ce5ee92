"""What acceleration past TCP brings: latency, throughput and Envoy's CPU, with and without.

Client and server are event-driven programs (stream.c) in namespaces of their own, directly or
through an Envoy that is addressed explicitly. Variants take turns, so that the machine's mood
hits all of them alike; figures are medians. Everything runs in a cgroup of its own, so that no
other socket of the machine meets the programs.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tools import bootstrap, compile_tool, cpu_ns
from bpf import selftest
from bpf.sockmap import Counts, Sockmap, SockmapConfig, cgroup_root
from demos.namespaces import NODE_IPV4, Endpoint, Lab
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy

SERVER_PORT, ENVOY_PORT, ADMIN_PORT = 7000, 7001, 7002
VARIANTS: dict[str, tuple[str, ...] | None] = {
    "no programs": None,
    "TCP": (),
    "accelerated": ("client", "server"),
    "client only": ("client",),
}
"""By name: the endpoints that have joined; None: nothing is attached. With a peer that takes no
part, a socket is in the map for nothing: the price of an opt-in for all other connections."""

SOL_SOCKET, SO_MARK = 1, 36


@dataclass(frozen=True)
class Load:
    """One kind of traffic; much: pings, or bytes."""

    name: str
    mode: str
    size: int
    much: int


@dataclass(frozen=True)
class Row:
    """The medians of one variant. gbit_s and cpu_ms_per_gb: of a bulk; p50_us: of a ping.

    cpu_ms_per_gb: Envoy's, 0 without one. direct: the share of messages that went past TCP.
    """

    path: str
    load: str
    variant: str
    p50_us: float
    p99_us: float
    gbit_s: float
    cpu_ms_per_gb: float
    direct: float


def loads(scale: float) -> list[Load]:
    return [
        Load("64 B ping", "ping", 64, int(6_000 * scale) + 10),
        Load("bulk of 1 KiB", "bulk", 1 << 10, int(60e6 * scale) + (1 << 16)),
        Load("bulk of 64 KiB", "bulk", 64 << 10, int(1e9 * scale) + (1 << 20)),
    ]


def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """All variants under all loads, directly and through Envoy. Raises BpfError without root."""
    tool = compile_tool("stream", folder)
    found: dict[tuple[str, str, str], list[Row]] = {}
    with ExitStack() as stack:
        cgroup = stack.enter_context(own_cgroup())
        lab = stack.enter_context(Lab("client", "server"))
        tested = selftest.run(folder, cgroup_root())
        if not tested.ok:
            raise SystemExit(tested.refusal)
        config = SockmapConfig(None, folder, cgroup, str(lab.node.path))
        client, server = lab["client"], lab["server"]
        server.popen(tool, "server", server.ipv4, str(SERVER_PORT))
        pid = stack.enter_context(proxy(folder, lab, server))
        wait(tool, client, server.ipv4, SERVER_PORT)
        paths = {"direct": (server.ipv4, SERVER_PORT), "through Envoy": (NODE_IPV4, ENVOY_PORT)}
        for _ in range(rounds):
            for load in loads(scale):
                for path, where in paths.items():
                    for variant, joined in VARIANTS.items():
                        with ExitStack() as turn:
                            sockmap = None
                            if joined is not None:
                                sockmap = turn.enter_context(Sockmap.open(config))
                                for name in joined:
                                    sockmap.join([lab[name].ipv4], str(lab[name].path))
                            row = run(tool, client, where, load, path, variant, pid, sockmap)
                        found.setdefault((path, load.name, variant), []).append(row)
    return [middle(rows) for rows in found.values()]


def run(
    tool: Path,
    client: Endpoint,
    where: tuple[str, int],
    load: Load,
    path: str,
    variant: str,
    envoy: int,
    sockmap: Sockmap | None,
) -> Row:
    """One turn."""
    cpu = cpu_ns(envoy)
    done = client.run(tool, load.mode, where[0], str(where[1]), str(load.size), str(load.much))
    if done.returncode:
        raise RuntimeError(f"{load.name}, {path}: {done.stderr}")
    cpu = cpu_ns(envoy) - cpu
    result = json.loads(done.stdout)
    gigabytes = load.much / 1e9 if load.mode == "bulk" else 0.0
    return Row(
        path,
        load.name,
        variant,
        result.get("p50_us", 0.0),
        result.get("p99_us", 0.0),
        gigabytes * 8 / result["seconds"] if gigabytes else 0.0,
        cpu / 1e6 / gigabytes if gigabytes and path != "direct" else 0.0,
        past_tcp(sockmap.counts()) if sockmap else 0.0,
    )


def past_tcp(counts: Counts) -> float:
    """The share of messages that went past TCP."""
    ways = ("messages", "off", "alone", "unread", "unproven", "blocking", "full", "spliced")
    return counts.messages / max(1, sum(getattr(counts, name) for name in ways))


def middle(rows: list[Row]) -> Row:
    """The medians of one variant's turns."""
    names = ("p50_us", "p99_us", "gbit_s", "cpu_ms_per_gb", "direct")
    numbers = {name: statistics.median(getattr(row, name) for row in rows) for name in names}
    return Row(rows[0].path, rows[0].load, rows[0].variant, **numbers)


@contextmanager
def own_cgroup() -> Iterator[Path]:
    """A cgroup that this process, and what it starts, is in."""
    root = cgroup_root()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    home = root / next(x for x in lines if x.startswith("0::"))[4:]
    made = root / f"proxylib-bench-{os.getpid()}"
    made.mkdir()
    (made / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield made
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        deadline = time.monotonic() + 5
        while made.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # processes that have ended leave in a moment
                made.rmdir()


@contextmanager
def proxy(folder: Path, lab: Lab, server: Endpoint) -> Iterator[int]:
    """An Envoy in the node that only proxies, with the marks by which it is known; its pid."""
    config: dict[str, Any] = bootstrap(ENVOY_PORT, SERVER_PORT, None)
    config["admin"] = {"address": address(NODE_IPV4, ADMIN_PORT)}
    resources = config["static_resources"]
    listener, cluster = resources["listeners"][0], resources["clusters"][0]
    listener["address"] = address(NODE_IPV4, ENVOY_PORT)
    listener["socket_options"] = [mark(0xB00)]
    (locality,) = cluster["load_assignment"]["endpoints"]
    locality["lb_endpoints"] = [{"endpoint": {"address": address(server.ipv4, SERVER_PORT)}}]
    cluster["upstream_bind_config"] = {
        "source_address": address(NODE_IPV4, 0)["socket_address"],
        "socket_options": [mark(0xA00)],
    }
    path = folder / "sockmap-envoy.json"
    path.write_text(json.dumps(config))
    with lab.node.entered():
        envoy = EnvoyProcess(find_envoy(), path, Address(NODE_IPV4, ADMIN_PORT))
    with envoy:
        with lab.node.entered():
            envoy.wait_ready()
        yield envoy.pid


def mark(value: int) -> dict[str, Any]:
    return {
        "level": SOL_SOCKET,
        "name": SO_MARK,
        "int_value": value,
        "state": "STATE_PREBIND",
    }


def address(ip: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def wait(tool: Path, client: Endpoint, ip: str, port: int) -> None:
    """Until it answers a ping."""
    deadline = time.monotonic() + 20
    while client.run(tool, "ping", ip, str(port), "64", "1").returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing answers at {ip}:{port}")
        time.sleep(0.05)


def show(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "path           load             variant               p50        p99    throughput"
        "   Envoy's CPU   past TCP"
    ]
    for row in rows:
        latency = f"{row.p50_us:>8.1f} us {row.p99_us:>7.1f} us" if row.p50_us else " " * 21
        speed = f"{row.gbit_s:>7.2f} Gbit/s" if row.gbit_s else " " * 14
        cpu = f"{row.cpu_ms_per_gb:>7.0f} ms/GB" if row.cpu_ms_per_gb else " " * 13
        lines.append(
            f"{row.path:<14} {row.load:<16} {row.variant:<15} {latency} {speed} {cpu}"
            f" {row.direct:>9.0%}"
        )
    return "\n".join(lines)
