"""Follows a page of docs/ literally, as a reader with two terminals would.

What a code block is stands behind its language:

====================  =============================================================
``file=NAME``         is written to that file
``python test``       a program; it must end without an error
``sh``                commands; they must succeed
``sh background``     a command that stays, in the other terminal, to the page's end
``text output``       what the commands before it print, ``...`` for anything
``text prints``       what the other terminal shows by now, among other lines
====================  =============================================================
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```([^\n`]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE = 90.0
"""Seconds for a command, or until something is printed."""


@dataclass
class Reader:
    """Works through pages in `folder`, with the commands of the environment `venv`.

    replaced: words of the pages that are others here (addresses).
    """

    folder: Path
    venv: Path
    replaced: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    seen: list[str] = field(default_factory=list)
    """The kinds of the blocks so far."""
    _background: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def follow(self, page: Path) -> None:
        """Do all that the page says."""
        try:
            for info, code in BLOCK.findall(self.here(page.read_text())):
                self._block(info, code)
        finally:
            for process, _ in self._background:
                _stop(process)

    def here(self, text: str) -> str:
        for word, mine in self.replaced.items():
            text = text.replace(word, mine)
        return text

    def _block(self, info: str, code: str) -> None:
        self.seen.append(info)
        _, _, what = info.partition(" ")
        if what.startswith("file="):
            target = self.folder / what.removeprefix("file=")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code)
        elif info == "python test":
            self._run([str(self.venv / "bin/python"), "-c", code], code)
        elif info == "sh":
            self._run(["sh", "-euc", code], code)
        elif info == "sh background":
            self._start(code)
        elif info == "text output":
            assert _matches(code, self.printed), f"expected:\n{code}\nprinted:\n{self.printed}"
        elif info == "text prints":
            self._wait(code)
        else:
            raise AssertionError(f"nobody runs a block of {info!r}:\n{code}")

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return {**kept, "PATH": f"{self.venv}/bin:{kept['PATH']}", "VIRTUAL_ENV": str(self.venv)}

    def _run(self, command: list[str], code: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.printed = done.stdout
        others = "\n".join(path.read_text() for _, path in self._background)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{others}"

    def _start(self, code: str) -> None:
        output = self.folder / f".terminal{len(self._background)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-euc", f"exec {code}"],
                cwd=self.folder,
                env={**self._environment(), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._background.append((process, output))

    def _wait(self, code: str) -> None:
        process, output = self._background[-1]
        deadline = time.monotonic() + PATIENCE
        lines = "...".join(code.splitlines())
        while not _matches(f"...{lines}...", output.read_text()):
            patient = process.poll() is None and time.monotonic() < deadline
            assert patient, f"expected:\n{code}\nprinted:\n{output.read_text()}"
            time.sleep(0.05)


def _matches(wanted: str, got: str) -> bool:
    """Whether all of `got` is what is `wanted`; blanks do not count."""
    return re.fullmatch(_pattern(wanted), " ".join(got.split()), re.DOTALL) is not None


def _pattern(text: str) -> str:
    return re.escape(" ".join(text.split())).replace(re.escape("..."), ".*")


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Not as Ctrl-C does: what begins in the background of a shell may be deaf to that.
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
