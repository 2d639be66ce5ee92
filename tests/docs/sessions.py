"""Pages whose ``sh`` blocks are one session with an agent, with its output in ``text`` blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.node.agents import running

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def play(page: Path) -> list[tuple[str, str]]:
    """What each block prints, and what the page says that it prints."""
    blocks = BLOCK.findall(page.read_text())
    marks = "".join(f"{script}\nprintf '\\0'\n" for script, _ in blocks)
    with tempfile.TemporaryDirectory(prefix="doc") as folder, running(Path(folder)) as agent:
        script = f'set -e\nproxylib() {{ "{sys.executable}" -m node "$@"; }}\n{marks}'
        environment = {
            **os.environ,
            "PROXYLIB_SOCKET": str(agent.config.api_path),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.split("\0")[:-1]
    return list(zip(printed, (text for _, text in blocks), strict=True))
