"""What is named in the configuration and is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.agent.places import check_places
from node.cli import cli
from node.errors import UsageError
from tests.node.agents import settings


def test_what_is_there_or_can_be_made(tmp_path: Path) -> None:
    check_places(settings(tmp_path / "new" / "deep"))
    check_places(settings(tmp_path, policy_dir=tmp_path, envoy=sys.executable))


def test_everything_that_is_wrong_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no program")
    config = settings(
        tmp_path,
        state_dir=file / "state",
        run_dir=file,
        envoy=str(file),
        policy_dir=tmp_path / "none",
        secrets_dir=file,
    )
    with pytest.raises(UsageError) as raised:
        check_places(config)
    assert str(raised.value).splitlines() == [
        "the configuration is wrong:",
        f"  envoy: {file} is not a program that can be started",
        f"  policy-dir: {tmp_path}/none is not a directory",
        f"  secrets-dir: {file} is not a directory",
        f"  state-dir: {file}/state cannot be made or written: {file} is not a directory",
        f"  run-dir: {file} cannot be made or written: {file} is not a directory",
    ]


@pytest.mark.parametrize(
    ("setting", "value"), [("envoy", "/nope"), ("policy-dir", "/nope"), ("node-ip", "x")]
)
def test_check_config_looks(tmp_path: Path, setting: str, value: str) -> None:
    places = ("--state-dir", str(tmp_path / "s"), "--run-dir", str(tmp_path / "r"))
    words = ("agent", "--check-config", *places, "--datapath", "none", f"--{setting}", value)
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert f"  {setting}: " in done.stderr
    assert value in done.stderr
