"""YAML in, values and places out; hostile YAML refused with its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xds import source
from xds.source import Document, DocumentError, dotted, read_documents, read_file
from xds.yamltext import MAX_KEYS, MAX_PROBLEMS


@pytest.fixture(autouse=True, params=["libyaml", "pure Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with both of PyYAML's parsers."""
    assert yaml.__with_libyaml__
    monkeypatch.setattr(yaml, "__with_libyaml__", request.param == "libyaml")


def read(text: str) -> Document:
    (document,) = read_documents("p.yaml", text)
    return document


def error(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read_documents("p.yaml", text)
    return str(caught.value)


def test_values_are_plain() -> None:
    text = "a: 1\nb: [x, ~, 1.5, 2020-01-01, 0x10, yes, true, '1']\nc:\n  d: {}\n"
    assert read(text).value == {
        "a": 1,
        "b": ["x", None, 1.5, "2020-01-01", "0x10", "yes", True, "1"],
        "c": {"d": {}},
    }


def test_place_of_a_value_and_of_a_missing_one() -> None:
    document = read("a:\n  b:\n    - c: 1\n    - c: 2\n")
    assert str(document.place(("a", "b", 1, "c"))) == "p.yaml:4:7: a.b[1].c"
    assert str(document.place(("a", "b", 7, "x"))) == "p.yaml:2:3: a.b[7].x"
    assert str(document.place()) == "p.yaml:1:1"


def test_documents_of_one_file_know_their_lines() -> None:
    one, two = read_documents("p.yaml", "a: 1\n---\n---\n# only this\n---\nb: 2\n")
    assert (one.value, two.value) == ({"a": 1}, {"b": 2})
    assert two.place(("b",)).line == 6


def test_aliases_are_expanded() -> None:
    assert read("a: &x [1]\nb: *x\n").value == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "p.yaml:4:3: b.c: the same key twice"),
        ("a: b: c\n", "p.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("a:\n\t- b\n", "(indent with spaces)"),
        ("a: \x01\n", "p.yaml:1:4: a character that YAML does not allow"),
        ("a: *no\n", "p.yaml:1:4: a: not valid YAML: found undefined alias 'no'"),
        ("a: !!python/object:os.system x\n", "p.yaml:1:4: a: YAML tag"),
        ("a: !x {}\n", "p.yaml:1:4: a: YAML tag '!x'"),
        ("a: {<<: {b: 1}}\n", "merge keys"),
        ("1: a\n", "p.yaml:1:1: a key must be text, not '1'"),
        ("? [a]\n: b\n", "a key must be text, not a list or mapping"),
        ("a: [1, !!float x]\n", "p.yaml:1:8: a[1]: YAML tag 'tag:yaml.org,2002:float' is not"),
        ("*x : a\n", "a key must be text, not a list or mapping"),
        ("a: &x [*x]\n", "nested deeper than 48"),
        ("[" * 5000, "nested deeper than 48"),
        ("- " * 5000, "nested deeper than 48"),
        ("%YAML 9.9\n---\na: b\n", "not valid YAML"),
    ],
)
def test_refused(text: str, message: str) -> None:
    assert message in error(text)


@pytest.mark.parametrize("text", ['a: "\\ud800"\n', '"\\ud800": a\n'])
def test_half_a_character(text: str) -> None:
    assert re.search("half of a surrogate pair|invalid Unicode character", error(text))


def test_alias_bomb_is_bounded() -> None:
    bomb = "l0: &l0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 15)
    )
    assert "more than 1000000 values" in error(bomb)


def test_a_mapping_has_so_many_keys() -> None:
    text = "\n".join(f"k{n}: 1" for n in range(MAX_KEYS))
    assert len(read(text).value) == MAX_KEYS
    assert "p.yaml:10001:1: more than 10000 keys in one mapping" in error(f"{text}\none: 1")


def test_every_mistake_of_a_file_is_reported() -> None:
    assert len(error("a: !x 1\nb: !y 1\n1: 2\n").splitlines()) == 3


def test_mistakes_are_not_reported_without_end() -> None:
    text = "".join(f"k{i}: !x 1\n" for i in range(MAX_PROBLEMS + 50))
    assert len(error(text).splitlines()) == MAX_PROBLEMS


def test_too_large(tmp_path: Path) -> None:
    assert "larger than" in error("#" * (source.MAX_FILE + 1))
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (source.MAX_FILE + 1))
    with pytest.raises(DocumentError, match="larger than"):
        read_file(path)


def test_unreadable_files(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe4\n")
    for path, message in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "not a regular file"),
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (latin, "latin.yaml:2:4: not UTF-8"),
    ):
        with pytest.raises(DocumentError, match=message):
            read_file(path)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(read_file(path)).value == {"a": 1}


def test_path_spelling() -> None:
    assert dotted(("specs", 0, "a", "io.cilium/x", 1)) == 'specs[0].a["io.cilium/x"][1]'
    assert dotted(()) == ""


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"\\%@`,?# \n\t01~<\x00é"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    messages: list[str] = ["none"]
    documents: list[Document] = []
    try:
        documents = read_documents("p.yaml", text)
    except DocumentError as caught:
        messages = [problem.message for problem in caught.problems]
    assert all(messages)
    assert messages
    assert all(document.place().line >= 1 for document in documents)


# Zl and Zp are line breaks to YAML 1.1, and folded with the spaces around them.
texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"], exclude_characters="\ufeff")
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_json_is_read_as_it_is(value: object) -> None:
    text = json.dumps({"value": value}, ensure_ascii=False, indent=1)
    assert read(text).value == {"value": value}
