"""docs/node.md: its session, typed in the node of a lab, prints what the page says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demos.namespaces import NAMES, Lab
from demos.node.agent import NodeAgent
from tests.docs.sessions import BLOCK, ROOT


@pytest.fixture
def agent() -> Iterator[NodeAgent]:
    with Lab() as lab, NodeAgent(lab) as made:
        yield made


def test_the_session(agent: NodeAgent, tmp_path: Path) -> None:
    page = (ROOT / "docs/node.md").read_text()
    # Names of namespaces are the whole machine's: ours are such that a lab would remove them.
    prefix = agent.lab.node.netns.removesuffix("node")
    blocks = [(script.replace("demo-", prefix), said) for script, said in BLOCK.findall(page)]
    marks = "".join(f"{script}\nprintf '\\0'\n" for script, _ in blocks)
    end = "".join(
        f"ip netns pids {prefix}{name} | xargs -r kill; ip netns del {prefix}{name}\n"
        for name in ("web", "client")
    )
    script = f'proxylib() {{ "{sys.executable}" -m node "$@"; }}\n{marks}\n{end}'
    environment = {
        **os.environ,
        "PROXYLIB_SOCKET": str(agent.socket),
        "PYTHONPATH": str(ROOT),
    }
    done = agent.lab.node.run("bash", "-c", script, cwd=tmp_path, env=environment, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\0")[:-1] == [said for _, said in blocks], done.stderr
    assert not list(NAMES.glob(f"{prefix}web"))
