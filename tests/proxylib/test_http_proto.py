"""HTTP rules as other control servers send them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

from proxylib import HeaderEdits, HttpRule
from proxylib.errors import RuleError
from proxylib.proto import npds_pb2 as npds


def rule(text: str) -> HttpRule:
    return HttpRule.from_proto(text_format.Parse(text, npds.HttpNetworkPolicyRule()))


def ask(text: str, **headers: str) -> object:
    request: dict[str, Any] = {
        "method": headers.pop("method", "GET").encode(),
        "path": b"/p",
        "host": b"h:80",
        "headers": tuple((k.encode(), v.encode()) for k, v in headers.items()),
    }
    return HttpRule.compile([rule(text)])(request)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('headers { name: ":method" exact_match: "GET" }', True),
        ('headers { name: ":method" safe_regex_match { regex: "G.T" } }', True),
        ('headers { name: ":method" safe_regex_match { regex: "G" } }', False),
        ('headers { name: ":path" prefix_match: "/" }', True),
        ('headers { name: ":path" suffix_match: "q" }', False),
        ('headers { name: ":authority" contains_match: ":8" }', True),
        ('headers { name: "Host" string_match { exact: "H:80" ignore_case: true } }', True),
        ('headers { name: "host" string_match { safe_regex { regex: "h:[0-9]+" } } }', True),
        ('headers { name: "a" }', True),
        ('headers { name: "b" }', False),
        ('headers { name: "b" present_match: false }', True),
        ('headers { name: "a" present_match: false }', False),
        ('headers { name: "a" present_match: false invert_match: true }', True),
        ('headers { name: "a" range_match { start: 5 end: 6 } }', True),
        ('headers { name: "a" exact_match: "5" invert_match: true }', False),
        ('headers { name: "b" exact_match: "" treat_missing_header_as_empty: true }', True),
        ("", True),
    ],
)
def test_matchers(text: str, expected: bool) -> None:
    assert ask(text, a="5") is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("match_action: DELETE_ON_MATCH", HeaderEdits(True, (b"a",), rejected=((b"a", b""),))),
        ("match_action: FAIL_ON_MATCH", HeaderEdits(False, rejected=((b"a", b""),))),
        (
            'value: "6" mismatch_action: CONTINUE_ON_MISMATCH',
            HeaderEdits(True, missing=((b"a", b"6"),)),
        ),
    ],
)
def test_match_actions(text: str, expected: HeaderEdits) -> None:
    assert ask(f'header_matches {{ name: "A" {text} }}', a="5") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('headers { name: "a" safe_regex_match { regex: "(" } }', "RE2"),
        ('headers { name: "a b" }', "name"),
        ("headers { }", "name"),
        ('headers { name: "a" string_match { custom: "x" } }', "custom"),
        ('headers { name: "a" string_match { } }', "no pattern"),
        ('headers { name: "a" prefix_match: "" }', "empty prefix"),
        (
            'header_matches { name: ":path" value: "/" mismatch_action: REPLACE_ON_MISMATCH }',
            "path",
        ),
        ('header_matches { name: "a" match_action: 7 }', "7"),
        ('header_matches { name: "a" mismatch_action: 9 }', "9"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        rule(text)


def test_unknown_fields_are_refused() -> None:
    message = npds.HttpNetworkPolicyRule()
    # A HeaderMatcher with a specifier of a later Envoy (field 99), which would else mean
    # "present".
    message.headers.add().ParseFromString(b"\x0a\x01a\xba\x06\x01x")
    with pytest.raises(RuleError, match="field 103"):
        HttpRule.from_proto(message)
