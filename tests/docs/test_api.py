"""docs/api.md is what the docstrings say today, and says something about every name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import proxylib
from proxylib import testing
from tests.docs.pages import DOCS

PAGE = (DOCS / "api.md").read_text()


def test_it_is_up_to_date() -> None:
    script = Path(__file__).parents[2] / "scripts" / "api.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_has_a_docstring() -> None:
    entries = dict(re.findall(r"^### (.+?)\n\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    named = {name for title in entries for name in title.split(", ")}
    assert named >= {*proxylib.__all__, *testing.__all__}
    silent = [
        title
        for title, text in entries.items()
        if not re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).strip()
    ]
    assert not silent
