"""What the node's programs cost: connections that go on as they are, and those that go to Envoy.

Client and server are endpoints of a node of their own (demos/namespaces.py); Envoy runs in the
node and only proxies, so that nothing but the way to it is compared.  Variants take turns, so
that the machine's mood hits all of them alike; figures are medians, ratios are to the first
variant of the same round.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tools import START_TIMEOUT, compile_tool, cpu_ns
from bpf.datapath import Datapath, DatapathConfig, Link, PolicyEntry
from demos.namespaces import NODE_IPV4, Endpoint, Lab
from node.envoy import find_envoy

SERVERS = {"direct": 9000, "redirected": 9001}
"""Ports of the servers: the policy has a proxy for the second."""
EXPLICIT, PROXY = 15001, 10001
REQUEST, REPLY = b"x" * 63 + b"\n", b"y" * 64
TCP, ALLOW, REDIRECT = 6, 1, 2
ANYBODY = 0
FULL = 16_384


@dataclass(frozen=True)
class Sample:
    """One turn: latencies in microseconds, and Envoy's CPU per request."""

    p50_us: float
    p99_us: float
    cpu_us: float


Turn = Callable[[str], Sample]
"""Runs one turn of a variant."""


@dataclass(frozen=True)
class Row:
    """The medians of one variant. ratio: of its p50 to the first variant's; reach: at most."""

    case: str
    variant: str
    p50_us: float
    p99_us: float
    cpu_us: float
    ratio: float
    reach: str


REACH = {
    ("64 bytes", "programs"): "<= 1.05 x",
    ("64 bytes", "16,384 entries"): "<= 1.05 x",
    ("bulk", "programs"): "<= 1.05 x",
    ("new connection, policy", "16,384 entries"): "<= 1.05 x",
    ("through Envoy, 64 bytes", "redirected"): "<= 1.1 x",
    ("through Envoy, new connection", "redirected"): "<= 1.1 x",
    ("through Envoy, bulk", "redirected"): "<= 1.1 x",
}


@dataclass(frozen=True)
class Pair:
    """A client and its server, each an endpoint."""

    client: Endpoint
    server: Endpoint


def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """All cases. Needs root."""
    tool = compile_tool("load", folder)
    names = {"no programs": "none", "programs": "ten", "16,384 entries": "full"}
    with ExitStack() as stack:
        hosts = [f"{name}-{side}" for name in names.values() for side in ("client", "server")]
        lab = stack.enter_context(Lab(*hosts))
        pairs = {
            variant: Pair(lab[f"{n}-client"], lab[f"{n}-server"]) for variant, n in names.items()
        }
        for pair in pairs.values():
            for port in SERVERS.values():
                serve(tool, folder, pair.server, port)
        envoy = proxy(lab, folder, pairs["programs"].server)
        config = DatapathConfig(
            root=lab.bpffs() / "bench", cache=folder, state=folder, netns=str(lab.node.path)
        )
        datapath = Datapath.open(config)
        stack.callback(datapath.close)
        enforce(datapath, lab, pairs)
        wait(pairs["programs"])

        def load(mode: str, port: int, *numbers: int) -> Turn:
            def turn(variant: str) -> Sample:
                pair = pairs.get(variant, pairs["programs"])
                where = pair.server.ipv4
                return run(tool, pair.client, [envoy.pid], mode, where, port, numbers)

            return turn

        def proxied(mode: str, *numbers: int) -> Turn:
            ways = {
                "direct": (pairs["programs"].server.ipv4, SERVERS["direct"]),
                "explicit": (NODE_IPV4, EXPLICIT),
                "redirected": (pairs["programs"].server.ipv4, SERVERS["redirected"]),
            }
            client = pairs["programs"].client
            return lambda way: run(tool, client, [envoy.pid], mode, *ways[way], numbers)

        small = (1, 1, int(scale * 20_000), len(REPLY))
        new = (int(scale * 3_000), len(REPLY))
        bulk = (int(scale * (1 << 30)), len(REPLY))
        direct = SERVERS["direct"]
        ways = ("explicit", "redirected", "direct")
        cases: dict[str, tuple[Sequence[str], Turn]] = {
            "64 bytes": ([*names], load("client", direct, *small)),
            "new connection": (("no programs", "programs"), load("connect", direct, *new)),
            "new connection, policy": (
                ("programs", "16,384 entries"),
                load("connect", direct, *new),
            ),
            "bulk": (("no programs", "programs"), load("bulk", direct, *bulk)),
            "through Envoy, 64 bytes": (ways, proxied("client", *small)),
            "through Envoy, new connection": (ways, proxied("connect", *new)),
            "through Envoy, bulk": (ways, proxied("bulk", *bulk)),
        }
        return [
            row
            for case, (variants, turn) in cases.items()
            for row in summarize(case, take_turns(variants, turn, rounds))
        ]


def take_turns(variants: Sequence[str], turn: Turn, rounds: int) -> dict[str, list[Sample]]:
    """The samples of each variant, one of a round; a first round warms up."""
    found: dict[str, list[Sample]] = {variant: [] for variant in variants}
    for count in range(rounds + 1):
        for variant in variants:
            sample = turn(variant)
            if count:
                found[variant].append(sample)
    return found


def summarize(case: str, samples: Mapping[str, Sequence[Sample]]) -> Iterator[Row]:
    base = next(iter(samples.values()))
    for variant, found in samples.items():
        ratios = [one.p50_us / other.p50_us for one, other in zip(found, base, strict=True)]
        p50, p99, cpu = (
            statistics.median(getattr(one, what) for one in found)
            for what in ("p50_us", "p99_us", "cpu_us")
        )
        reach = REACH.get((case, variant), "")
        yield Row(case, variant, p50, p99, cpu, statistics.median(ratios), reach)


def enforce(datapath: Datapath, lab: Lab, pairs: Mapping[str, Pair]) -> None:
    """Attach the pairs that have programs, each with its policy."""
    with datapath.transaction():
        for variant, pair in pairs.items():
            if variant == "no programs":
                continue
            for endpoint in (pair.client, pair.server):
                datapath.attach(
                    Link(
                        endpoint.number,
                        lab.node.ifindex(endpoint.interface),
                        endpoint.ipv4,
                        endpoint.ipv6,
                        identity=1000 + endpoint.number,
                    )
                )
                datapath.set_identities({f"{endpoint.ipv4}/32": 1000 + endpoint.number})
                few = variant == "programs"
                datapath.set_policy(endpoint.number, policy(endpoint is pair.client, few))


def policy(client: bool, few: bool) -> list[PolicyEntry]:
    """Everybody may reach the servers, one of them by the proxy; the rest fills the map."""
    allowed = [
        PolicyEntry(ANYBODY, not client, TCP, port, 24, ALLOW, ALLOW)
        for port in (SERVERS["direct"], EXPLICIT)
    ]
    port = PROXY if client else 0
    verdict = REDIRECT if client else ALLOW
    redirected = PolicyEntry(
        ANYBODY, not client, TCP, SERVERS["redirected"], 24, verdict, verdict, port
    )
    rest = (10 if few else FULL) - len(allowed) - 1
    others = [
        PolicyEntry(20_000 + number, True, TCP, 80, 24, ALLOW, ALLOW) for number in range(rest)
    ]
    return [*allowed, redirected, *others]


def serve(tool: Path, folder: Path, server: Endpoint, port: int) -> None:
    """The C responder, in the server's namespace."""
    reply = folder / f"reply-{server.name}-{port}"
    reply.write_bytes(REPLY)
    with reply.open("rb") as stdin:
        server.popen(tool, "server", server.ipv4, str(port), "\n", stdin=stdin)


def proxy(lab: Lab, folder: Path, server: Endpoint) -> subprocess.Popen[Any]:
    """Envoy in the node: one listener that is addressed, one that is redirected to."""
    config = folder / "node-envoy.json"
    config.write_text(json.dumps(bootstrap(server)))
    with (folder / "node-envoy.log").open("wb") as log:
        return lab.node.popen(
            *(find_envoy(), "-c", config, "--concurrency", "1", "-l", "warning"),
            "--disable-hot-restart",
            stdout=log,
            stderr=log,
        )


def bootstrap(server: Endpoint) -> dict[str, Any]:
    """Envoy's configuration: both listeners go to the server by tcp_proxy."""
    listener_filters = "type.googleapis.com/envoy.extensions.filters.listener"
    return {
        "static_resources": {
            "listeners": [
                _listener("explicit", NODE_IPV4, EXPLICIT),
                {
                    **_listener("redirected", "127.0.0.1", PROXY),
                    "transparent": True,
                    "socket_options": [{"level": 1, "name": 36, "int_value": 0xB00}],
                    "listener_filters": [
                        {
                            "name": "envoy.filters.listener.original_dst",
                            "typed_config": {
                                "@type": f"{listener_filters}.original_dst.v3.OriginalDst"
                            },
                        },
                        {
                            "name": "envoy.filters.listener.original_src",
                            "typed_config": {
                                "@type": f"{listener_filters}.original_src.v3.OriginalSrc",
                                "mark": 0xA00,
                            },
                        },
                    ],
                },
            ],
            "clusters": [
                {
                    "name": "explicit",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "explicit",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": _address(server.ipv4, SERVERS["redirected"])
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                },
                {"name": "redirected", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"},
            ],
        }
    }


def _listener(name: str, host: str, port: int) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    config = {"@type": kind, "stat_prefix": name, "cluster": name}
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": config}]
    return {
        "name": name,
        "address": _address(host, port),
        "filter_chains": [{"filters": filters}],
    }


def _address(ip: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def run(
    tool: Path,
    client: Endpoint,
    proxies: Sequence[int],
    mode: str,
    host: str,
    port: int,
    numbers: Sequence[int],
) -> Sample:
    """One turn of the load client. Raises RuntimeError with what it said."""
    before = sum(map(cpu_ns, proxies))
    done = client.run(tool, mode, host, port, *map(str, numbers), input=REQUEST.decode())
    if done.returncode:
        raise RuntimeError(f"{mode} to {host}:{port}: {done.stderr}")
    result = json.loads(done.stdout)
    cpu = (sum(map(cpu_ns, proxies)) - before) / result["requests"] / 1e3
    return Sample(result["p50_us"], result["p99_us"], cpu)


def wait(pair: Pair) -> None:
    """Until both of Envoy's listeners are there. Raises RuntimeError if they do not come."""
    for host, port in ((NODE_IPV4, EXPLICIT), (pair.server.ipv4, SERVERS["redirected"])):
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            with pair.client.entered(), suppress(OSError):
                socket.create_connection((host, port), 1).close()
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"nobody answers at {host}:{port}")


def show(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [f"{'case':32}{'variant':18}{'p50 us':>10}{'p99 us':>10}{'Envoy us':>10}  ratio"]
    lines += [
        f"{row.case:32}{row.variant:18}{row.p50_us:10.1f}{row.p99_us:10.1f}{row.cpu_us:10.1f}"
        f"  {row.ratio:.2f} x  {row.reach}"
        for row in rows
    ]
    return "\n".join(lines)
