"""``proxylib parser test``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from node.errors import SetupError, UsageError
from node.parsers import choose_parser
from proxylib.testing import check_parser


@click.command("test")
@click.argument("parser", metavar="PARSER|FOLDER")
@click.option(
    "--dialogues",
    default=300,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many hostile dialogues to play.",
)
@click.option("--seed", default=0, show_default=True, help="Which ones.")
@click.option(
    "--samples",
    "sample_files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="What the protocol looks like: a file, or a folder of them; may be given several times.",
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def command(
    parser: str,
    dialogues: int,
    seed: int,
    sample_files: tuple[Path, ...],
    pytest_args: tuple[str, ...],
) -> None:
    """Check a parser: a name, a Python file, or the folder of its package.

    Every parser must bear hostile dialogues: none may make it panic, and it may never
    matter how they are cut.  They are made of noise, of --samples and, for a folder, of
    the files in its corpus/.  A folder's own tests follow (pytest, which gets what stands
    behind --).

    Exit status: 0 all passed, 1 something failed.
    """
    folder = Path(parser)
    samples = [burst for path in sample_files for burst in _samples(path)]
    if folder.is_dir():
        samples += _samples(folder / "corpus")
        parser = _parser_of(folder)
    name = choose_parser(parser).name
    try:
        check_parser(name, samples, dialogues=dialogues, seed=seed)
    except AssertionError as error:
        click.echo(f"{click.style('FAILED', fg='red')}  {name}: {error}")
        raise SystemExit(1) from None
    click.echo(f"{click.style('ok', fg='green')}  {name}: {dialogues} hostile dialogues, any cuts")
    if folder.is_dir():
        raise SystemExit(_run_tests(folder, pytest_args))


def _samples(path: Path) -> Iterator[bytes]:
    """The bursts of a corpus (a file, or a folder of them): cut at lines of two dashes."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            yield from file.read_bytes().split(b"\n--\n")


def _parser_of(folder: Path) -> str:
    """The parser that a package's pytest configuration names."""
    path = folder / "pyproject.toml"
    try:
        settings: Any = tomllib.loads(path.read_text())
        parser = str(settings["tool"]["pytest"]["ini_options"]["proxylib_parser"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder}: its pyproject.toml must say which parser it is, "
            f"[tool.pytest.ini_options] proxylib_parser = … ({error!r})"
        ) from None
    return str(folder / parser) if ".py" in parser else parser


def _run_tests(folder: Path, arguments: tuple[str, ...]) -> int:
    if importlib.util.find_spec("pytest") is None:
        raise SetupError("its tests need pytest: pip install pytest hypothesis")
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=folder, check=False).returncode and 1
