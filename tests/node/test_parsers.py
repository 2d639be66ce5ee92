"""Finding the parser that a user means."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import UsageError
from node.parsers import ParserChoice, choose_parser

GOOD = """
from proxylib import FramedParser, Message, lines, parser

@parser("{name}")
class Mine(FramedParser):
    framing = lines(b"\\n")
    def request(self, frame):
        return Message(line=frame)
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_registered_name() -> None:
    assert choose_parser("r2d2") == ParserChoice("r2d2")


def test_a_file_by_absolute_and_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "choice_abs.py", GOOD.format(name="choice-abs"))
    assert choose_parser(str(path)) == ParserChoice("choice-abs", (path,))
    monkeypatch.chdir(tmp_path)
    relative = write(tmp_path / "choice_rel.py", GOOD.format(name="choice-rel"))
    assert choose_parser("choice_rel.py") == ParserChoice("choice-rel", (relative,))


def test_a_file_with_several(tmp_path: Path) -> None:
    text = GOOD.format(name="choice-b") + GOOD.format(name="choice-a")
    path = write(tmp_path / "choice_two.py", text)
    with pytest.raises(UsageError, match=r"registers choice-a, choice-b: choose one, .*:choice-a"):
        choose_parser(str(path))


def test_one_of_several(tmp_path: Path) -> None:
    text = GOOD.format(name="choice-d") + GOOD.format(name="choice-c")
    path = write(tmp_path / "choice_three.py", text)
    assert choose_parser(f"{path}:choice-d") == ParserChoice("choice-d", (path,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r2d3", "unknown parser 'r2d3': did you mean 'r2d2'?"),
        ("zzzzz", "unknown parser 'zzzzz': known are .*r2d2"),
        ("", "unknown parser ''"),
        ("a/b", "a name or the path of a .py file"),
        ("none/here.py", "here.py: there is no such file"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_parser(text)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def broken(:\n", ["SyntaxError", "line 1"]),
        ("import nothing_of_the_sort\n", ["line 1, in <module>", "ModuleNotFoundError"]),
        ("def deep():\n    1 / 0\n\ndeep()\n", ["line 2, in deep", "ZeroDivisionError"]),
        ("raise SystemExit(3)\n", ["line 1, in <module>", "SystemExit: 3"]),
        ("x = 1\n", ["registers no parser"]),
        (GOOD.format(name="r2d2"), ["registered already"]),
    ],
)
def test_a_file_that_fails_is_told_with_the_author_s_lines(
    tmp_path: Path, code: str, expected: list[str]
) -> None:
    choose_parser("r2d2")
    path = write(tmp_path / "failing_choice.py", code)
    with pytest.raises(UsageError) as caught:
        choose_parser(str(path))
    text = str(caught.value)
    assert text.startswith(f"parser {path} does not load: ")
    for part in expected:
        assert part in text
    assert "importlib" not in text
    assert "registry.py" not in text
