"""Tables and lines for people."""

from __future__ import annotations

import click

from node.tables import lines, safe, table


def test_columns_are_as_wide_as_their_widest_line() -> None:
    text = click.unstyle(
        table(("A", ("LONG", "HEADER")), [("1", ("x", "yy")), ("22222", "z"), ("", "")])
    )
    assert text.split("\n") == [
        "A       LONG",
        "        HEADER",
        "1       x",
        "        yy",
        "22222   z",
        "",
    ]


def test_wide_characters_take_two_columns() -> None:
    text = click.unstyle(table(("A", "B"), [("日本", "x"), ("abcd", "y")]))
    assert text.split("\n")[1:] == ["日本   x", "abcd   y"]


def test_nothing_moves_the_cursor() -> None:
    assert safe("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"
    assert "\x1b[2J" not in table(("A",), [("\x1b[2J",)])


def test_lines() -> None:
    assert lines([("KVStore", "Ok   Disabled"), ("Empty", "")]) == (
        "KVStore:                Ok   Disabled\nEmpty:"
    )
