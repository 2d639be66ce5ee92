"""The plugin as a process, with an agent of its own and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.cni.protocol import VALID_ATTACHMENTS, VERSIONS
from tests.node.cni.test_protocol import CONFIG, ENVIRONMENT, RESULT

PLUGIN = Path(sys.executable).with_name("proxylib-cni")


def call(command: str, *, env: dict[str, str] | None = None, **config: Any) -> tuple[int, Any]:
    """The plugin's exit status, and what it prints."""
    done = subprocess.run(
        [PLUGIN],
        input=json.dumps({**CONFIG, **config}),
        env={**ENVIRONMENT, "CNI_COMMAND": command, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def nobody(tmp_path: Path) -> str:
    return str(tmp_path / "nobody.sock")


def test_version() -> None:
    assert call("VERSION", cniVersion="0.4.0") == (
        0,
        {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)},
    )
    assert call("VERSION", cniVersion="9.9.9")[1]["cniVersion"] == VERSIONS[-1]


def test_errors_are_json_in_the_network_s_version(nobody: str) -> None:
    status, error = call("ADD", socket=nobody, cniVersion="0.4.0", label=[])
    assert status == 1
    assert error == {
        "cniVersion": "0.4.0",
        "code": 2,
        "msg": "the configuration has a key 'label' that nobody reads",
        "details": "proxylib-cni has socket, labels, sidecar, sockmap",
    }


def test_without_an_agent(nobody: str) -> None:
    """What would need a policy does not start; what ends, ends."""
    status, error = call("ADD", socket=nobody)
    assert (status, error["code"], error["msg"]) == (1, 11, "the agent is not there")
    assert nobody in error["details"]
    assert call("DEL", socket=nobody) == (0, None)
    assert call("CHECK", socket=nobody)[1]["code"] == 11
    assert call("STATUS", socket=nobody, cniVersion="1.1.0")[1]["code"] == 50
    garbage = {VALID_ATTACHMENTS: []}
    assert call("GC", socket=nobody, cniVersion="1.1.0", **garbage)[1]["code"] == 11


def test_called_by_a_person() -> None:
    done = subprocess.run(
        [PLUGIN], stdin=subprocess.DEVNULL, env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "which container runtimes call" in json.loads(done.stdout)["details"]


def test_alone_it_is_nothing(nobody: str) -> None:
    status, error = call("ADD", socket=nobody, prevResult=None)
    assert (status, error["code"]) == (1, 7)
    assert "behind ptp" in error["details"]
    assert call("ADD", socket=nobody, prevResult={**RESULT, "ips": []})[1]["code"] == 7


def test_it_starts_without_the_framework() -> None:
    """Every container waits for it."""
    code = "import sys, node.cni.plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"proxylib", "xds", "click", "pydantic", "google", "asyncio", "pyroute2"}
