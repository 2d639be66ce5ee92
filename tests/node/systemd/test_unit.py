"""The unit, as systemd itself reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli import cli
from node.systemd import unit


def printed() -> str:
    result = CliRunner().invoke(cli, ["gen-unit"])
    assert result.exit_code == 0
    return result.stdout


def parsed(text: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_starts_this_installation() -> None:
    service = parsed(printed())["Service"]
    command = Path(sys.executable).with_name("proxylib")
    assert service["ExecStart"] == f'"{command}" agent'
    assert service["ExecStartPre"] == f'-"{command}" agent --check-config'


def test_envoy_outlives_the_agent() -> None:
    service = parsed(printed())["Service"]
    kept = ("Type", "KillMode", "OOMPolicy", "Restart", "RuntimeDirectoryPreserve", "Delegate")
    assert [service[key] for key in kept] == [
        "notify",
        "process",
        "continue",
        "always",
        "yes",
        "yes",
    ]


@pytest.mark.parametrize("name", ["plain", "with space", "100%", "a$b"])
def test_systemd_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    executable = tmp_path / name / "proxylib"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    path = tmp_path / "proxylib.service"
    path.write_text(unit(executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # It is read: an executable that is not there is found.
    path.write_text(unit(tmp_path / "nothing" / "proxylib"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
