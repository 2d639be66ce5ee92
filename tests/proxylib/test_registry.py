"""The registry: names, duplicates, entry points, and parsers from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import Connection, Parser, ParserFactory, RegistrationError, parser, registry
from proxylib import register_parser_factory as register


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards, and so are the modules it loads."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


class Factory(ParserFactory):
    def create(self, connection: Connection) -> Parser | None:
        return None


def test_duplicate_is_an_error_that_names_the_first() -> None:
    register("twice", Factory())
    with pytest.raises(RegistrationError, match=r"'twice' is registered already, by .*Factory"):
        register("twice", Factory())


def test_empty_name_is_an_error() -> None:
    with pytest.raises(RegistrationError):
        register("", Factory())


def test_decorator_registers_the_class_with_its_rule_and_first_line() -> None:
    @parser("decorated")
    class Decorated(Parser):
        """What it is.

        And more.
        """

        def on_data(self, reply, end_stream, data):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    factory = registry.get_parser_factory("decorated")
    assert factory is not None
    assert factory.rule_class is Decorated.Rule
    assert factory.description == "What it is."
    assert "decorated" in registry.parser_names()


def test_installed_parsers_are_found_by_name() -> None:
    assert "r2d2" in registry.parser_names()
    factory = registry.get_parser_factory("r2d2")
    assert factory is not None
    assert "cmd" in factory.rule_class.fields


def test_nobody() -> None:
    assert registry.get_parser_factory("nobody") is None
    assert registry.get_parser_factory("") is None


PARSER = """
from proxylib import FramedParser, lines, parser

@parser({name!r})
class Mine(FramedParser):
    framing = lines()

    def request(self, frame):
        return None
"""


def test_parser_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PARSER.format(name="mine"))
    assert registry.load_parser_file(path) == ["mine"]
    assert registry.get_parser_factory("mine") is not None


def test_parser_file_does_not_replace_a_module_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(PARSER.format(name="odd"))
    registry.load_parser_file(path)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("absent.py", None, "no such Python file"),
        ("notes.txt", "hello", "no such Python file"),
        ("empty.py", "", "registers no parser"),
        ("broken.py", "def", "SyntaxError"),
        ("raises.py", "1 / 0", "ZeroDivisionError"),
        ("needs.py", "import no_such_module_here", "no_such_module_here"),
        ("again.py", PARSER.format(name="r2d2"), "registered already"),
        ("exits.py", "raise SystemExit(3)", "SystemExit"),
    ],
)
def test_bad_parser_file(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    registry.get_parser_factory("r2d2")
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(RegistrationError, match=reason):
        registry.load_parser_file(path)


def test_parser_file_that_failed_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "mend.py"
    path.write_text(PARSER.format(name="mend") + "\n1 / 0\n")
    with pytest.raises(RegistrationError, match="ZeroDivisionError"):
        registry.load_parser_file(path)
    path.write_text(PARSER.format(name="mend") + "\n# mended\n")
    assert registry.load_parser_file(path) == ["mend"]


UNFIT = [
    ("class P: pass", "not a subclass of Parser"),
    ("class P(Parser): pass", "does not define on_data"),
    ("class P(FramedParser): pass", "framing is not a Framing"),
    ("class P(FramedParser):\n    framing = b'x'", "framing is not a Framing"),
    ("class P(FramedParser):\n    framing = lines()", "does not define request"),
    (
        "class P(Parser):\n    class Rule: pass\n    def on_data(self): pass",
        "Rule is not a subclass",
    ),
    ("class R(L7Rule):\n    a = Exact", r"R\.a: write Exact\(\)"),
]


@pytest.mark.parametrize(("text", "reason"), UNFIT)
def test_a_class_that_cannot_work_is_refused_when_it_is_registered(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "unfit.py"
    decorator = "@parser('unfit')\n" if text.startswith("class P") else ""
    path.write_text(f"from proxylib import *\n{decorator}{text}\n")
    with pytest.raises(RegistrationError, match=reason):
        registry.load_parser_file(path)


@pytest.mark.parametrize("name", ["", "x y", "a/b", "a\n", "-a", "a" * 65])
def test_names_that_parsers_cannot_have(name: str) -> None:
    with pytest.raises(RegistrationError, match="cannot be a parser's name"):
        registry.register_parser_factory(name, ParserFactory())
