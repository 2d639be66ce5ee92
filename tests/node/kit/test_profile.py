"""A profile says how many messages there were, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli import cli
from proxylib.recording import read_lines, write_lines
from proxylib.tap import Recorder
from proxylib.testing import Host


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    host = Host("r2d2", [{"cmd": "READ", "file": "^plans/"}])
    Recorder(tmp_path).tap(host.connection)
    for _ in range(5):
        host.client(b"READ plans/x\r\nHALT\r\n")
        host.server(b"OK\r\n")
    host.connection.close()
    (path,) = tmp_path.glob("*.jsonl")
    return path


def test_a_profile(recording: Path, tmp_path: Path) -> None:
    for flame in (tmp_path / "flame.html", tmp_path / "flame.json"):
        options = ["--seconds", "0.4", "--flame", str(flame)]
        result = CliRunner().invoke(cli, ["parser", "profile", "r2d2", str(recording), *options])
        assert result.exit_code == 0, result.output
        assert "r2d2: 10 messages in 10 calls, 120 bytes" in result.output
        assert "us per message" in result.output
        assert "on_batch" in result.output
    assert "speedscope" in json.loads(flame.read_text())["$schema"]


def test_a_recording_of_nothing(recording: Path) -> None:
    text = recording.read_text().splitlines()
    recording.write_text("\n".join(write_lines(read_lines(text[:1]))))
    result = CliRunner().invoke(cli, ["parser", "profile", "r2d2", str(recording)])
    assert result.exit_code == 2
    assert "nothing for the parser to judge" in result.output


def test_a_flame_graph_of_unknown_kind(recording: Path) -> None:
    arguments = ["parser", "profile", "r2d2", str(recording), "--flame", "x.svg"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert ".html or .json" in result.output
