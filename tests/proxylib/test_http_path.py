"""The one normalisation of request paths. Envoy's own is held against it in test_http_filter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import normalize_path
from proxylib.http_path import _NORMAL

TABLE = {
    b"/": b"/",
    b"/public/a.html?x=/../y": b"/public/a.html?x=/../y",
    b"/public/../private": b"/private",
    b"/public/%2e%2e/private": b"/private",
    b"/public/.%2E/private": b"/private",
    b"/a/./b": b"/a/b",
    b"/a/.": b"/a/",
    b"/a/..": b"/",
    b"/../../x": b"/x",
    b"/a/...": b"/a/...",
    b"//a": b"/a",
    b"/a//b/": b"/a/b/",
    b"/a//../b": b"/a/b",
    b"/a/b//../../c": b"/a/c",
    b"//": None,
    b"/..//": None,
    b"//?x": None,
    b"/a\\b": b"/a/b",
    b"/a/..\\b": b"/b",
    b"\\a": None,
    b"/a%2fb": None,
    b"/a%5Cb": None,
    b"/a%00b": None,
    b"/a%": None,
    b"/a%4": None,
    b"/a/%%32e%%32e/b": None,
    b"/a%2541": b"/a%2541",
    b"/%61%7E%2D": b"/a~-",
    b"/%c3%a9": b"/%c3%a9",
    b"/\xc3\xa9": None,
    b"/a b": None,
    b"/a?b c": None,
    b"/a#b": None,
    b"/a?b#c": None,
    b"/a|b": b"/a%7Cb",
    b'/a"<>^`{}b': b"/a%22%3C%3E%5E%60%7B%7Db",
    b"/a/..;/b": b"/b",
    b"/a/..;x=1/b": b"/b",
    b"/a/.;/b": b"/a/b",
    b"/a/..;": b"/",
    b"/a/%2e%2e;/b": None,
    b"/a/..%3b/b": b"/a/..%3b/b",
    b"/a;x/../b": b"/b",
    b"/a;b/c": b"/a;b/c",
    b"/;/a": b"/;/a",
    b"/?": b"/?",
    b"": None,
    b"*": None,
    b"a": None,
    b"?x": None,
    b"http://h/a": None,
}


@pytest.mark.parametrize("raw", TABLE)
def test_normalized(raw: bytes) -> None:
    assert normalize_path(raw) == TABLE[raw]


@given(st.lists(st.sampled_from([*b"/.;%?aA:@_"]), max_size=8).map(bytes))
def test_what_is_left_alone_quickly(tail: bytes) -> None:
    raw = b"/" + tail
    normal = _NORMAL.fullmatch(raw) is not None
    assert (normalize_path(raw) is raw) == normal


@given(st.lists(st.sampled_from([*b"/.;\\%2eE5fcC0?aA#|"]), max_size=20).map(bytes))
def test_nothing_is_left_to_do(tail: bytes) -> None:
    once = normalize_path(b"/" + tail)
    if once is not None:
        assert normalize_path(once) == once
        path = once.partition(b"?")[0]
        assert b"//" not in path
        assert not {b".", b".."} & {part.partition(b";")[0] for part in path.split(b"/")}
        assert not any(escape in path.lower() for escape in (b"%2e", b"%2f", b"%5c", b"%00", b"\\"))
