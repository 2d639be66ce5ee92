"""The fixtures of the pytest plugin, where the scaffold's own tests do not show them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from node.kit.scaffold import new_parser


def run(folder: Path, test: str) -> str:
    (folder / "tests" / "test_more.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_more.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    return done.stdout


def test_a_wrong_dialogue_shows_a_diff_and_nothing_else(tmp_path: Path) -> None:
    new_parser("droid", tmp_path, "line")
    out = run(tmp_path, "def test(dialogue):\n    dialogue('client: QUIT\\\\r\\\\n')\n")
    assert "+  server gets: QUIT\\r\\n" in out
    assert "check_dialogue" not in out
    assert "1 failed" in out


def test_other_rules_than_the_files(tmp_path: Path) -> None:
    new_parser("droid", tmp_path, "line")
    out = run(
        tmp_path,
        "def test(dialogue, policy):\n"
        "    assert policy == [{'command': 'GET', 'argument': '^greeting$'}, {'command': 'QUIT'}]\n"
        "    dialogue('''\n"
        "        client: QUIT\\\\r\\\\n\n"
        "          client gets: ERROR access denied\\\\r\\\\n\n"
        "          log: Denied command=QUIT argument=\n"
        "        ''', rules=[{'command': 'GET'}])\n",
    )
    assert "1 passed" in out, out


def test_what_is_not_configured_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    out = run(tmp_path, "def test(dialogue): pass\n")
    assert "proxylib_parser is not set" in out


def test_a_log_that_does_not_come(tmp_path: Path) -> None:
    new_parser("droid", tmp_path, "line")
    out = run(tmp_path, "def test(accesslog):\n    accesslog.wait(1, timeout=0.01)\n")
    assert "0 entries, not 1" in out
