"""What policy costs at size: load, one change to the data path, one look-up.

Ten rules in each of a thousand documents, a thousand endpoints with labels of their
own; the control server here, the library's own client in another process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from proxylib import npds
from proxylib.policy import compile_policies
from proxylib.registry import get_parser_factory
from proxylib.rules import Matcher
from xds.control import ControlServer

ENDPOINTS = 1000
RULES = 10
ROUNDS = 9


@dataclass(frozen=True)
class Row:
    """One measurement, in `unit`."""

    name: str
    value: float
    unit: str
    reach: str


def measure(folder: Path, scale: float) -> list[Row]:
    """Load, change and look-up; scale: how many of the thousand endpoints there are."""
    return [*_load_and_change(folder, max(20, int(ENDPOINTS * scale))), *_lookup()]


def show(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [f"{'policy':<58}{'':>12}  reach"]
    lines += [f"{row.name:<58}{row.value:>8.2f} {row.unit:<4} {row.reach}" for row in rows]
    return "\n".join(lines)


def _document(number: int, size: int, command: str) -> str:
    """A policy of endpoint `number` of `size`; each rule is about two others and a team."""
    ingress = [
        {
            "fromEndpoints": [
                {"matchLabels": {"app": f"a{(number * 7 + n) % size}"}},
                {"matchLabels": {"app": f"a{(number * 11 + n) % size}"}},
                {"matchLabels": {"team": f"t{(number + n) % 100}"}},
            ],
            "toPorts": [
                {
                    "ports": [{"port": 11211 + n, "protocol": "TCP"}],
                    "rules": {
                        "l7proto": "memcache",
                        "l7": [{"command": command, "keyPrefix": f"a{number}/{n}/"}],
                    },
                }
            ],
        }
        for n in range(RULES)
    ]
    return json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": f"p{number}"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": f"a{number}"}},
                "ingress": ingress,
            },
        }
    )


def _endpoints(size: int) -> str:
    return json.dumps(
        {
            "endpoints": [
                {
                    "address": f"10.0.{n >> 8}.{n & 255}",
                    "labels": {"app": f"a{n}", "team": f"t{n % 100}"},
                }
                for n in range(size)
            ]
        }
    )


@contextmanager
def _subscriber(path: Path) -> Iterator[Callable[[], float]]:
    """A process that subscribes; the call waits for a version to be in force there,
    and says when it was."""
    command = [sys.executable, "-m", "benchmarks.subscriber", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield lambda: float(process.stdout.readline())
        finally:
            process.terminate()


def _load_and_change(folder: Path, endpoints: int) -> list[Row]:
    documents = {f"p{n}": _document(n, endpoints, "get") for n in range(endpoints)}
    everybody, path = _endpoints(endpoints), folder / "xds.sock"
    with ControlServer(path) as control, _subscriber(path) as in_force:
        in_force()

        def put() -> float:
            start = time.monotonic()
            control.set_documents(documents, everybody)
            return in_force() - start

        load = put()
        changes = []
        for turn in range(ROUNDS):
            documents["p7"] = _document(7, endpoints, ("set", "get")[turn % 2])
            changes.append(put() * 1000)
    size = f"{endpoints * RULES:,} rules x {endpoints:,} identities"
    return [
        Row(f"load of {size}, from YAML to in force", load, "s", "<= 10"),
        Row("one document changed then, to in force", statistics.median(changes), "ms", "<= 100"),
    ]


def _lookup() -> list[Row]:
    times = {rules: _one_lookup(rules) for rules in (10, 16_000)}
    return [
        Row("decide and match at 10 rules", times[10] * 1e9, "ns", ""),
        Row("decide and match at 16,000 rules", times[16_000] * 1e9, "ns", ""),
        Row("the second in terms of the first", times[16_000] / times[10], "x", "<= 2"),
    ]


def _one_lookup(rules: int) -> float:
    """Seconds of a decision and a match, of several keys in turn."""
    items = [{"command": "get", "keyPrefix": f"p{n}/"} for n in range(rules // 2)]
    items += [{"command": "set", "keyExact": f"k{n}"} for n in range(rules - rules // 2)]
    document = {
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "endpointSelector": {},
            "ingress": [
                {
                    "toPorts": [
                        {
                            "ports": [{"port": 11211, "protocol": "TCP"}],
                            "rules": {"l7proto": "memcache", "l7": items},
                        }
                    ]
                }
            ],
        },
    }
    control = ControlServer(Path("unused"))
    control.set_documents({"p": json.dumps(document)}, "endpoints: [{address: 10.0.0.1}]")
    policy = compile_policies(
        control.loaded.resources[npds.POLICY_TYPE], get_parser_factory, version="1"
    )

    def decide() -> Matcher:
        return policy.decide(
            "10.0.0.1", ingress=True, port=11211, remote=256, parser="memcache"
        ).matcher

    last = rules // 2 - 1
    messages = [
        {"command": b"get", "keys": b"p%d/x" % last},
        {"command": b"set", "keys": b"k%d" % last},
        {"command": b"get", "keys": b"q/x"},
        {"command": b"set", "keys": b"none"},
    ]
    assert [decide()(message) for message in messages] == [True, True, False, False]
    return (
        min(_timed(lambda: [decide()(message) for message in messages]) for _ in range(ROUNDS)) / 4
    )


def _timed(call: Callable[[], object], times: int = 5000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
