"""The measurements run, and give a row for everything that they promise to measure.

How fast anything is, is not tested here: that is what `make bench` is for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import calls, proxying

ROOT = Path(__file__).parents[2]


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


def test_bench() -> None:
    rows = json.loads(run("benchmarks", "--rounds", "1", "--scale", "0.02", "--json"))
    assert [row["name"] for row in rows["calls"]] == [case[0] for case in calls.CASES]
    measured = {(row["upstream"], row["depth"], row["variant"]) for row in rows["proxying"]}
    assert set(proxying.REACH) < measured
    assert all(row["cpu_us"] > 0 for row in rows["proxying"])


def test_soak() -> None:
    said = run("benchmarks.soak", "--connections", "500", "--panics", "50")
    assert "growth after the first tenth" in said
