"""docs/monitor.md: its commands on a real node, with a real Envoy, print what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from demos.namespaces import Lab
from demos.node.agent import ROOT, NodeAgent
from demos.servers.nginx import nginx
from node.address import Address
from tests.docs.sessions import BLOCK

PAGE = ROOT / "docs" / "monitor.md"
POLICY = ROOT / "demos" / "node" / "nginx-ingress-l7.yaml"

CHANGING = (
    (r"0x[0-9a-f]+", "FLOW"),
    (r"(10\.1\.0\.3):[0-9]+", r"\1:PORT"),
    (r"pid [0-9]+", "PID"),
    (r"up [0-9:]+", "UP"),
    (r"on [0-9]+ CPUs", "CPUS"),
    (r"[0-9.]+%", "PART"),
    (r"\bfullest: \w+", "FULLEST"),
)
"""What is another thing each time."""


def steady(text: str) -> str:
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    return text


@pytest.fixture(scope="module")
def node() -> Iterator[NodeAgent]:
    files = {"index.html": b"hello\n", "welcome": b"welcome\n"}
    with Lab("nginx", "alpine") as lab, NodeAgent(lab) as agent, ExitStack() as servers:
        with lab["nginx"].entered():
            folder = lab.folder / "nginx"
            folder.mkdir(mode=0o755)
            servers.enter_context(nginx(Address(lab["nginx"].ipv4, 80), folder, files))
        for endpoint in lab:
            agent.add(endpoint, f"k8s:app={endpoint.name}")
        agent.proxylib("policy", "import", "--wait", POLICY)
        yield agent


def ask(lab: Lab, *requests: str) -> None:
    """alpine's curl: with these options, one after the other."""
    for request in requests:
        name = f"nginx:80:{lab['nginx'].ipv4}"
        options = ("-s", "-o", "/dev/null", "--max-time", "2", "--resolve", name)
        lab["alpine"].run("curl", *options, "--noproxy", "*", *request.split())


def traffic(lab: Lab, script: str) -> None:
    """What the page says that happens while a command watches."""
    if "drop" in script:
        ask(lab, f"http://{lab['nginx'].ipv4}:81/")
    elif "l7" in script:
        ask(lab, "-I http://nginx/", "http://nginx/welcome")
    else:
        ask(lab, "-I http://nginx/")


@pytest.mark.timeout(240)
def test_the_page(node: NodeAgent) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 5
    for script, said in blocks:
        watches = "monitor" in script
        process = node.lab.node.popen(
            *("env", f"PROXYLIB_SOCKET={node.socket}", f"PYTHONPATH={ROOT}", "bash", "-c"),
            f'proxylib() {{ "{sys.executable}" -m node "$@"; }}\n{script}',
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            if watches:
                assert "watching node" in process.stderr.readline()
                traffic(node.lab, script)
            printed, errors = process.communicate(timeout=60)
        assert steady(printed) == steady(said), errors
        assert process.returncode == 0


def test_every_list_is_told() -> None:
    from node.commands.bpf import command

    text = PAGE.read_text()
    for name in command.commands:
        assert f"| `{name} list" in text
