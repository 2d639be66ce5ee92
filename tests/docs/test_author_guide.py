"""Runs the code of docs/author-guide.md, block by block, as a reader would."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from proxylib.registry import get_parser_factory

GUIDE = Path(__file__).parents[2] / "docs" / "author-guide.md"
BLOCK = re.compile(r"^```(\w+) (file=(\S+)|test)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("proxylib.registry._factories", {})
    tests = 0
    for _, kind, name, code in BLOCK.findall(GUIDE.read_text()):
        if name:
            (tmp_path / name).write_text(code)
            sys.modules.pop(Path(name).stem, None)
        else:
            assert kind == "test"
            exec(compile(code, f"{GUIDE.name}, test {tests + 1}", "exec"), {})
            tests += 1
    assert tests >= 3
    assert get_parser_factory("droid") is not None


def test_its_policy_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents of section 3 load with the parser of section 2."""
    from node.cli import main

    for _, _, name, code in BLOCK.findall(GUIDE.read_text()):
        if name:
            (tmp_path / name).write_text(code)
    monkeypatch.setattr("proxylib.registry._factories", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("droid", None)
    __import__("droid")
    with pytest.raises(SystemExit) as exited:
        main(
            [
                "policy",
                "validate",
                str(tmp_path / "droid-policy.yaml"),
                "--endpoints",
                str(tmp_path / "droid-endpoints.yaml"),
            ]
        )
    assert exited.value.code == 0
