"""The stories of a node, told by the program that people run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demos import namespaces
from demos.node import nginx
from demos.servers import cassandra, maven
from tests.demos.test_demos import EXAMPLES, ROOT


def tell(story: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demos.node", story],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("story", "rows"), [("nginx", 21), ("memcached", 26)])
def test_a_story(story: str, rows: int) -> None:
    namespaces.check()
    done = tell(story)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"All {rows} as expected." in done.stdout
    assert "WRONG" not in done.stdout
    assert "left out" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.timeout(900)  # the first run downloads the jars
def test_cassandra() -> None:
    namespaces.check()
    maven.jars(*cassandra.ARTIFACTS)
    test_a_story("cassandra", 24)


@pytest.mark.parametrize("policy", [nginx.L4, nginx.L7])
def test_the_policies_are_those_of_the_source_documents(policy: Path) -> None:
    assert policy.read_text() == (EXAMPLES / policy.name).read_text()


def test_without_root_it_says_so() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-m", "demos.node"]
        if os.geteuid() == 0
        else [sys.executable, "-m", "demos.node"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "need root" in done.stderr
