"""Runs the fuzzer for a bounded time: ``python -m tests.fuzz.run --seconds 60``.

Needs the package atheris.  Starts from the corpus in this folder and leaves it as
it is: what it finds on the way is in a temporary directory, and what makes a target
fail is kept under ``--keep``, ready to be added to the corpus.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

CORPUS = Path(__file__).with_name("corpus")
DICTIONARY = Path(__file__).with_name("dictionary")
TARGETS = sorted(path.name for path in CORPUS.iterdir() if path.is_dir())


@click.command()
@click.option("--seconds", default=60, show_default=True, help="Time per target.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, default=TARGETS)
@click.option("--keep", type=click.Path(path_type=Path), default=Path("build/fuzz"))
def main(seconds: int, targets: tuple[str, ...], keep: Path) -> None:
    """Fuzz the parsers and the reader of policies, one after the other."""
    keep.mkdir(parents=True, exist_ok=True)
    failed = [target for target in targets if not _run_apart(target, seconds, keep)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the inputs are in {keep}")


def _run_apart(target: str, seconds: int, keep: Path) -> bool:
    """Fuzz one target in a process of its own: libFuzzer ends its process."""
    with tempfile.TemporaryDirectory() as found:
        shutil.copytree(CORPUS / target, found, dirs_exist_ok=True)
        options = [
            f"-dict={DICTIONARY / target}",
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=20",
        ]
        options += [f"-artifact_prefix={keep}/{target}-", found]
        command = [sys.executable, "-m", "tests.fuzz.worker", target, *options]
        return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
