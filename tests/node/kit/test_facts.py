"""What the command line tells about parsers."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from node.cli import cli
from node.kit.facts import parser_facts, rule_schema


def test_an_installed_parser() -> None:
    facts = parser_facts("r2d2")
    assert facts.origin == "proxylib (parsers.r2d2)"
    assert facts.version
    assert [(key.key, key.kind, key.property) for key in facts.rules] == [
        ("cmd", "exact", "cmd"),
        ("file", "regex", "file"),
    ]
    assert facts.rules[0].choices == ("READ", "WRITE", "HALT", "RESET")


def test_the_schema_takes_what_the_rule_class_takes() -> None:
    schema = rule_schema(parser_facts("r2d2"))
    jsonschema.validate({"cmd": "READ", "file": "^x"}, schema)
    jsonschema.validate({"cmd": None}, schema)
    for bad in ({"cmd": "FLY"}, {"verb": "READ"}, {"cmd": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_describe_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.registry._factories", {})
    path = tmp_path / "described.py"
    path.write_text(
        '"""A droid of mine."""\n'
        "from proxylib import Exact, FramedParser, L7Rule, Message, lines, parser\n"
        "@parser('described')\n"
        "class Described(FramedParser):\n"
        '    """Says little."""\n'
        "    framing = lines()\n"
        "    class Rule(L7Rule):\n"
        "        verb = Exact('beep', of='word', doc='what it says')\n"
        "    def request(self, frame): return Message(word=frame)\n"
    )
    result = CliRunner().invoke(cli, ["parser", "describe", str(path)])
    assert result.exit_code == 0, result.output
    for text in ("described", "Says little.", "A droid of mine.", "verb", "word", "one of beep"):
        assert text in result.output
    result = CliRunner().invoke(cli, ["parser", "describe", "--json", str(path)])
    told = json.loads(result.output)
    assert told["origin"] == str(path)
    assert told["schema"]["properties"]["verb"]["enum"] == ["beep", "", None]


def test_describe_who_is_not_there() -> None:
    result = CliRunner().invoke(cli, ["parser", "describe", "r2d3"])
    assert result.exit_code == 2
    assert "did you mean 'r2d2'?" in result.output
