"""docs/sandbox.md: its command runs, its keys are those that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from proxylib import limits
from proxylib.sandbox.settings import KEYS, ON_ERROR
from tests.node.conftest import Command

PAGE = (Path(__file__).parents[2] / "docs/sandbox.md").read_text()


def test_the_command() -> None:
    found = re.search(r"^```console\n\$ proxylib (.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n", " ").replace(":4000", ":0"))
    running = Command(*words, "--json")
    try:
        running.event("ready")
        assert running.end() == 0
    finally:
        running.close()


def test_the_keys() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", PAGE, re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"[a-z_]+", row)} == set(KEYS)
    for name in ON_ERROR:
        assert f"**{name}**" in PAGE


def test_the_defaults() -> None:
    assert limits.TIME_BUDGET == 0.1
    assert limits.MEMORY_BUDGET == 32 << 20
    assert (limits.BREAKER_PANICS, limits.BREAKER_PERIOD) == (100, 10)
    assert (limits.BREAKER_PAUSE, limits.MAX_BREAKER_PAUSE) == (5, 300)
    assert (limits.WORKER_PAUSE, limits.MAX_WORKER_PAUSE) == (0.1, 10)
    assert limits.WORKER_MEMORY == 1 << 30
