"""The documents of envoy_configs/, judged by Envoy and run as their comments say."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demos.stage import connect
from node.address import Address
from node.envoy import SEARCH_PATH, EnvoyProcess, find_envoy, find_library
from tests.node.conftest import ROOT, Command
from tests.node.test_run import CLIENT, closed, dialogue

DOCUMENTS = sorted((ROOT / "envoy_configs").glob("*.yaml"))


def test_there_are_documents() -> None:
    assert DOCUMENTS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_envoy_accepts_it(document: Path) -> None:
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", document],
        env={**os.environ, SEARCH_PATH: str(find_library().parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search(r" (warning|error) .*deprecated", done.stderr)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_it_names_no_machine(document: Path) -> None:
    text = re.sub(r"(?m)#.*$", "", document.read_text())
    paths = set(re.findall(r'"(/[^"]*)"|path: (/[^,}\s]*)', text))
    assert paths
    assert all((one or other).startswith("/run/proxylib/") for one, other in paths)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_static_r2d2_runs_as_its_comments_say(
    tmp_path: Path, echo: Address, command: Callable[..., Command]
) -> None:
    policy, endpoints = tmp_path / "policy.yaml", tmp_path / "endpoints.yaml"
    policy.write_text((ROOT / "demos/r2d2-policy.yaml").read_text().replace("4040", str(echo.port)))
    endpoints.write_text(
        "endpoints:\n"
        "- {address: 127.0.0.1, labels: {app: r2d2}}\n"
        "- {address: 127.20.0.2, labels: {name: luke}}\n"
    )
    listen = Address("127.0.0.1", free_port())
    text = (ROOT / "envoy_configs/static-r2d2.yaml").read_text()
    for placeholder, value in (
        ("/run/proxylib", str(tmp_path)),
        ("port_value: 4000", f"port_value: {listen.port}"),
        ("port_value: 4040", f"port_value: {echo.port}"),
        ("127.0.0.1:4040", str(echo)),
    ):
        assert placeholder in text
        text = text.replace(placeholder, value)
    document = tmp_path / "envoy.yaml"
    document.write_text(text)

    log = command("accesslog", tmp_path / "access_log.sock", "--json")
    command("policy", "serve", policy, "--endpoints", endpoints, "--socket", tmp_path / "xds.sock")
    deadline = time.monotonic() + 30
    while not (tmp_path / "xds.sock").exists() or not (tmp_path / "access_log.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with EnvoyProcess(find_envoy(), document, tmp_path / "admin.sock") as envoy:
        envoy.wait_ready()
        with connect("127.20.0.2", listen) as luke:
            assert dialogue(luke, b"HALT\r\n", b"RESET\r\n") == [b"HALT\r\n", b"ERROR\r\n"]
        assert log.decision()["verdict"] == "allowed"
        assert log.decision()["verdict"] == "denied"
        with connect(CLIENT, listen) as stranger:
            assert closed(stranger, b"HALT\r\n")
