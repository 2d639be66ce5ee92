"""The measurements run, and give a row for everything that they promise to measure.

How fast anything is, is not tested here: that is what `make bench` is for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calls, node, protocols, proxying, sandbox, sidecars, sockmap
from demos.servers import cassandra, kafka, maven
from tests.conftest import MakeLab

ROOT = Path(__file__).parents[2]
VIA_ENVOY_ONLY = ("through Envoy", "client only")
"""Its connection to Envoy is accelerated although the server's is not."""


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bench(only: str) -> list[dict[str, Any]]:
    """The rows of one table."""
    said = run("benchmarks", "--rounds", "1", "--scale", "0.02", "--json", "--only", only)
    (rows,) = json.loads(said).values()
    return list(rows)


def test_sandbox() -> None:
    budget, *rows = bench("sandbox")
    assert 0 < budget["budget_ns"] < budget["call_ns"]
    measured = {(row["variant"], row["depth"]) for row in rows}
    variants = ("in process", "isolated")
    assert measured == {(name, depth) for name in variants for depth, _ in sandbox.LOADS}


def test_packets(make_lab: MakeLab) -> None:
    make_lab()
    rows = bench("packets")
    assert rows[0]["packet"] == "no program"
    assert len(rows) == 5
    assert all(row["ns"] > 0 and row["full_ns"] > 0 for row in rows)


def test_node(make_lab: MakeLab) -> None:
    make_lab()  # left out where there can be none
    rows = bench("node")
    assert {(row["case"], row["variant"]) for row in rows} >= node.REACH.keys()
    assert all(row["p50_us"] > 0 for row in rows)
    quick = [row for row in rows if "bulk" not in row["case"]]
    envoys = {row["variant"] for row in quick if row["cpu_us"] > 30}
    assert envoys <= {"explicit", "redirected"}, "what no policy selects never meets Envoy"


def test_sidecars(make_lab: MakeLab, tmp_path: Path) -> None:
    make_lab()
    one, many = sidecars.measure(tmp_path, rounds=1, scale=0.02, serving=2)
    assert (one.envoys, many.envoys) == (1, 2)
    assert 0 < one.memory_mib < many.memory_mib


def test_reload() -> None:
    at_rest, reloaded = bench("reload")
    assert at_rest["reloads"] == 0
    assert reloaded["ratio"] == pytest.approx(reloaded["p99_us"] / at_rest["p99_us"])


def test_sockmap(make_lab: MakeLab) -> None:
    make_lab()  # left out where there can be none
    rows = bench("sockmap")
    measured = {(row["path"], row["load"], row["variant"]) for row in rows}
    assert len(measured) == len(rows) == 2 * len(sockmap.loads(1)) * len(sockmap.VARIANTS)
    for row in rows:
        assert row["p50_us"] > 0 or row["gbit_s"] > 0
        assert (row["direct"] > 0.1) == (
            row["variant"] == "accelerated" or (row["path"], row["variant"]) == VIA_ENVOY_ONLY
        ), row


def test_calls() -> None:
    assert [row["name"] for row in bench("calls")] == [case[0] for case in calls.CASES]


def test_proxying() -> None:
    rows = bench("proxying")
    measured = {(row["upstream"], row["depth"], row["variant"]) for row in rows}
    assert set(proxying.REACH) < measured
    assert all(row["cpu_us"] > 0 for row in rows)


@pytest.mark.timeout(600)  # the first run downloads the jars
@pytest.mark.parametrize("name", ["r2d2", "memcache", "cassandra", "kafka"])
def test_a_line_per_protocol(name: str) -> None:
    if name == "cassandra":
        maven.jars(*cassandra.ARTIFACTS)
    if name == "kafka":
        maven.jars(*kafka.artifacts(kafka.NEW))
    rows = bench(name)
    wanted = [item for item in protocols.PROTOCOLS if item.name.startswith(name)]
    measured = {(row["protocol"], row["depth"], row["variant"]) for row in rows}
    for item in wanted:
        for depth in item.depths:
            for variant in ("tcp_proxy", item.parser, f"{item.parser}, log"):
                assert (item.name, depth, variant) in measured
    assert all(row["cpu_us"] > 0 and row["per_second"] > 0 for row in rows)


def test_policy() -> None:
    rows = bench("policy")
    assert [row["unit"] for row in rows] == ["s", "ms", "ns", "ns", "x"]
    assert all(row["value"] > 0 for row in rows)


def test_soak() -> None:
    said = run("benchmarks.soak", "--connections", "500", "--panics", "50")
    assert "growth after the first tenth" in said
