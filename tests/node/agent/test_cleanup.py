"""``proxylib agent cleanup`` where it should not, and where little is left to go by."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demos.namespaces import Lab
from demos.node.agent import PROXYLIB, ROOT, NodeAgent
from node.agent.cleanup import clean
from node.errors import SetupError
from tests.conftest import MakeLab
from tests.node.agent.nodes import ask, ingress, programs, serve
from tests.node.agents import http_client, settings

NOBODY = 65534


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    made = make_lab("client", "server", outside=True)
    serve(made["server"])
    return made


@pytest.fixture
def agent(lab: Lab) -> NodeAgent:
    """One that judges two endpoints with an Envoy, and has ended."""
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        lab.node.sysctl(setting, 0)
    made = NodeAgent(lab, "--bpf-cache", programs().name)
    with made, http_client(made.socket) as http:
        for name in ("client", "server"):
            body = {"netns": lab[name].netns, "labels": [f"app={name}"]}
            assert http.post("/endpoint", json=body).status_code == 201
        made.proxylib("policy", "import", "-", "--wait", stdin=ingress("READ"))
        judged(lab)
    return made


def judged(lab: Lab) -> None:
    server = lab["server"].ipv4
    assert ask(lab["client"], server, b"READ x").endswith(b"READ x")
    assert ask(lab["client"], server, b"HALT") == b"ERROR"


def cleanup(agent: NodeAgent, where: object, *flags: str) -> subprocess.CompletedProcess[str]:
    words = (*PROXYLIB, "agent", "cleanup", *map(str, agent.places()), *flags)
    done: subprocess.CompletedProcess[str] = where.run(*words, cwd=ROOT)  # type: ignore[attr-defined]
    return done


@pytest.mark.timeout(200)
def test_in_another_namespace_nothing_is_touched(lab: Lab, agent: NodeAgent) -> None:
    record = agent.state_dir / "bpf/restore.json"
    before, envoys = agent.left(), agent.envoys()
    aside = record.with_suffix(".aside")
    for _ in range(2):
        done = cleanup(agent, lab.outside)
        assert (done.returncode, done.stdout) == (3, "")
        assert "of another network namespace" in done.stderr
        assert "--force" in done.stderr
        assert agent.left() == before
        assert agent.envoys() == envoys
        # The pins alone say it too.
        if not aside.exists():
            record.rename(aside)
    judged(lab)
    aside.rename(record)
    done = cleanup(agent, lab.node)
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.left() == []
    assert lab.node.sysctl("ipv4/ip_forward") == "0"


@pytest.mark.timeout(200)
def test_a_namespace_that_is_no_more_needs_force(lab: Lab, agent: NodeAgent) -> None:
    done = cleanup(agent, lab.outside, "--force")
    assert done.returncode == 0
    assert f"removed: pins in {agent.bpf_root}" in done.stdout
    assert "removed: Envoy, process" in done.stdout
    assert not agent.bpf_root.exists()
    assert agent.envoys() == []
    # The lab's node is there all the same: cleaned up there too, as far as it is known.
    done = cleanup(agent, lab.node)
    assert done.returncode == 0
    assert agent.left() == []


@pytest.mark.timeout(200)
def test_without_the_state_the_kernel_is_cleaned(lab: Lab, agent: NodeAgent) -> None:
    for pid in agent.envoys():
        os.kill(pid, 9)
    shutil.rmtree(agent.state_dir)
    done = cleanup(agent, lab.node)
    assert done.returncode == 0
    assert "rules and table 2004" in done.stdout
    assert "what they were before is not known" in done.stderr
    assert "net.ipv4.ip_forward = 1" in done.stderr
    assert agent.left() == []
    assert lab.node.sysctl("ipv4/ip_forward") == "1"
    assert ask(lab["client"], lab["server"].ipv4, b"HALT").endswith(b"HALT")
    again = cleanup(agent, lab.node)
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing was left\n", "")


@pytest.mark.timeout(200)
def test_an_agent_with_another_state_is_not_robbed(lab: Lab, agent: NodeAgent) -> None:
    agent.start()
    elsewhere = settings(Path(lab.folder) / "other", run_dir=agent.run_dir)
    with pytest.raises(SetupError, match="another agent"), lab.node.entered():
        clean(elsewhere)
    judged(lab)
    assert agent.stop() == 0
    done = cleanup(agent, lab.node)
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_home_that_may_not_be_read_is_told_of(short_path: Path) -> None:
    home = short_path / "home"
    home.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert f"{home}" in done.stderr
    assert "Permission denied" in done.stderr


_AS_NOBODY = f"""
import os, sys
from node.cli import main
import node.commands.agent, node.agent.cleanup, node.tables
os.environ["HOME"] = sys.argv[1]
os.environ.pop("XDG_STATE_HOME", None)
os.setgid({NOBODY}); os.setuid({NOBODY})
sys.argv = ["proxylib", "agent", "cleanup"]
sys.exit(main())
"""
"""The checkout may be out of the user's reach: what is needed is loaded before."""
