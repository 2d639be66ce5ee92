"""Compiles and runs the host of docs/c-abi.md, and compares what it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from proxylib.native import library_path

ROOT = Path(__file__).parents[2]


def block(kind: str) -> str:
    text = (ROOT / "docs" / "c-abi.md").read_text()
    found = re.search(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_host_prints_what_the_page_says(tmp_path: Path) -> None:
    source, host = tmp_path / "host.c", tmp_path / "host"
    source.write_text(block("c file=host.c"))
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "proxylib/native", "-o", host, source],
        check=True,
    )
    done = subprocess.run([host, library_path()], capture_output=True, check=True, timeout=30)
    assert done.stdout.decode().replace("\r\n", "\n") == block("text output")
