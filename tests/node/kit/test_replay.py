"""Recorded through a real Envoy, and judged again off line."""

from __future__ import annotations

import json
import socket
import socketserver
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from node.address import Address
from node.bootstrap import RecordConfig
from node.cli import cli
from node.kit.replay import judges, read_recording, replay
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from parsers.r2d2 import R2d2
from proxylib import Message, registry
from proxylib.proto.accesslog_pb2 import LogEntry
from proxylib.recording import Recording, write_lines
from tests.serving import serving

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: droid}
spec:
  endpointSelector: {matchLabels: {app: r2d2}}
  ingress:
    - toPorts:
        - ports: [{port: "%d", protocol: TCP}]
          rules:
            l7proto: r2d2
            l7: %s
"""
ENDPOINTS = "endpoints:\n  - {address: 127.0.0.1, labels: {app: r2d2}}\n"


class Droid(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"OK\r\n")


@pytest.fixture
def server() -> Iterator[Address]:
    with serving(Droid) as address:
        yield address


def policy(folder: Path, port: int, rules: str) -> Path:
    path = folder / f"policy-{abs(hash(rules))}.yaml"
    path.write_text(POLICY % (port, rules))
    return path


def talk(proxy: Address) -> None:
    with socket.create_connection((proxy.host, proxy.port)) as client:
        lines = client.makefile("rb")
        for request, answer in (
            (b"READ password=abc\r\n", b"OK\r\n"),
            (b"WRITE x\r\n", b"ERROR\r\n"),
            (b"HALT\r\n", b"OK\r\n"),
        ):
            client.sendall(request)
            assert lines.readline() == answer


@pytest.fixture
def recorded(server: Address, tmp_path: Path) -> tuple[Path, Path, int]:
    """A recording of three requests, the endpoints, and the server's port."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text(ENDPOINTS)
    entries: list[LogEntry] = []
    config = ProxyConfig(
        parser=choose_parser("r2d2"),
        listen=Address.parse("127.0.0.1:0", any_port=True),
        upstream=server,
        policies=(policy(tmp_path, server.port, "[{cmd: READ}, {cmd: HALT}]"),),
        endpoints=endpoints,
        record=RecordConfig(folder, 1 << 20, 10, ("password=[a-z]+",)),
    )
    with Proxy(config, on_entries=entries.extend) as proxy:
        talk(proxy.address)
    assert [entry.entry_type for entry in entries] == [0, 2, 0]
    (path,) = folder.iterdir()
    return path, endpoints, server.port


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_what_was_recorded_is_what_happens_again(recorded: tuple[Path, Path, int]) -> None:
    path, _, _ = recorded
    run = replay(read_recording(path))
    assert not run.differs
    assert run.to_server == b"READ password=abc\r\nHALT\r\n".replace(b"password=abc", b"x" * 12)
    assert run.to_client == b"OK\r\nERROR\r\nOK\r\n"
    result = call("replay", path)
    assert result.exit_code == 0, result.output
    assert "1 connections, 0 differ; 1 Denied now; 1 Denied then; 2 Request now" in result.output


def test_what_another_policy_would_have_denied(
    recorded: tuple[Path, Path, int], tmp_path: Path
) -> None:
    path, endpoints, port = recorded
    stricter = policy(tmp_path, port, "[{cmd: HALT}]")
    arguments = ("replay", path, "--policy", stricter, "--endpoints", endpoints)
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert "-Request cmd=READ file=xxxxxxxxxxxx" in result.output
    assert "+Denied cmd=READ file=xxxxxxxxxxxx" in result.output
    told = json.loads(call(*arguments, "--json").output)
    assert told["differs"]
    assert [line.split()[0] for line in told["now"]] == ["Denied", "Denied", "Request"]


def test_a_policy_that_lets_nobody_in(recorded: tuple[Path, Path, int], tmp_path: Path) -> None:
    path, endpoints, port = recorded
    other = policy(tmp_path, port + 1, "[{cmd: HALT}]")
    run = replay(read_recording(path), judge=judges([other], endpoints, []))
    assert run.closed
    assert run.to_server == b""
    assert run.now[0].startswith("Denied status=Connection closed: no ingress policy for port")


def test_todays_code_shows_what_it_does_otherwise(
    recorded: tuple[Path, Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = recorded

    def request(self: R2d2, frame: bytes) -> Message:
        return Message(cmd=frame[:4], file=b"", length=len(frame))

    monkeypatch.setattr(R2d2, "request", request)
    result = call("replay", path)
    assert result.exit_code == 1
    assert "+Request cmd=HALT file= length=4" in result.output


def test_a_parser_that_the_policy_does_not_name(
    recorded: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxylib.registry._factories", dict(registry._factories))
    other = tmp_path / "other.py"
    other.write_text(
        "from parsers.r2d2 import R2d2\nfrom proxylib import parser\nparser('r2d2.other')(R2d2)\n"
    )
    result = call("replay", recorded[0], "--parser", other)
    assert result.exit_code == 1
    assert "is for parser r2d2, not r2d2.other" in result.output


def test_a_recording_without_a_policy_needs_one(
    recorded: tuple[Path, Path, int], tmp_path: Path
) -> None:
    path, _, _ = recorded
    recording = read_recording(path)
    bare = Recording(type(recording.facts)("r2d2"), recording.happenings)
    other = tmp_path / "bare.jsonl"
    other.write_text("\n".join(write_lines(bare)))
    result = call("replay", other)
    assert result.exit_code == 2
    assert "give one with --policy" in result.output


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe", b'{"proxylib-recording": 9}\n'])
def test_what_is_no_recording(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    result = call("replay", path)
    assert result.exit_code == 2
    assert str(path) in result.output
