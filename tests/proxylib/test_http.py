"""HTTP rules: what they allow, and what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxylib import HeaderEdits, HttpRule, log_fields, path_test
from proxylib.errors import RuleError
from proxylib.http import REDACTED
from proxylib.http_secrets import Secrets


def request(
    method: str = "GET", path: str = "/", *headers: tuple[str, str], host: str = "h"
) -> dict[str, Any]:
    return {
        "method": method.encode(),
        "path": path.encode(),
        "host": host.encode(),
        "headers": tuple((name.encode(), value.encode()) for name, value in headers),
    }


def allowed(rules: list[dict[str, str]], asked: dict[str, Any], *, deny: bool = False) -> bool:
    return bool(HttpRule.compile([HttpRule(rule) for rule in rules], deny=deny)(asked))


def test_everything() -> None:
    assert allowed([{}], request())
    assert not allowed([], request())


def test_all_of_a_rule_and_any_rule() -> None:
    rules = [
        {"method": "GET", "path": "/path1$"},
        {"method": "PUT", "path": "/path2$", "headers": "X-My-Header: true"},
    ]
    right = ("x-my-header", "true")
    assert allowed(rules, request("GET", "/path1"))
    assert allowed(rules, request("PUT", "/path2", right))
    assert not allowed(rules, request("PUT", "/path2"))
    assert not allowed(rules, request("PUT", "/path2", ("x-my-header", "truer")))
    assert not allowed(rules, request("PUT", "/path1", right))
    assert not allowed(rules, request("GET", "/path1/x"))
    assert not allowed(rules, request("GET", "/x/path1"))


@pytest.mark.parametrize(
    ("line", "yes", "no"),
    [
        ("X-Token: [0-9]+", ["42", "[0-9]+"], ["4x", "", "42,43"]),
        ("X-Token: a.b", ["a.b"], ["axb"]),
        ("X-Token: a+b", ["a+b"], ["aab"]),
        ("X-Token: */*", ["*/*"], ["a/b"]),
        (
            "X-Token: Mozilla/5.0 (X11; Linux)",
            ["Mozilla/5.0 (X11; Linux)"],
            ["Mozilla/5.0 X11; Linux"],
        ),
        ("X-Token: [broken", ["[broken"], ["b"]),
        ("X-Token", ["", "x"], []),
    ],
)
def test_header_lines(line: str, yes: list[str], no: list[str]) -> None:
    for value in yes:
        assert allowed([{"headers": line}], request("GET", "/", ("x-token", value))), value
    for value in no:
        assert not allowed([{"headers": line}], request("GET", "/", ("x-token", value))), value
    assert not allowed([{"headers": line}], request("GET", "/", ("x-other", "42")))


def test_several_headers_of_a_name_are_one() -> None:
    assert allowed([{"headers": "a: 1,2"}], request("GET", "/", ("a", "1"), ("b", "x"), ("a", "2")))
    assert not allowed([{"headers": "a: 1"}], request("GET", "/", ("a", "1"), ("a", "2")))


def test_an_imitated_header_matches_no_rule_that_names_it() -> None:
    """CGI and WSGI servers make one variable of both."""
    token = {"headers": "X-My-Token: [0-9]+"}
    right = ("x-my-token", "1")
    for imitation in ("x_my_token", "x-my_token", "x_my-token"):
        asked = request("GET", "/", right, (imitation, "2"))
        assert not allowed([token], asked)
        assert not allowed([{"headers": "X-My-Token"}], request("GET", "/", (imitation, "2")))
        assert allowed([token, {"path": "/"}], asked), "another rule does not look at it"
        assert allowed([{"headers": "X-My: 1"}], request("GET", "/", ("x-my", "1"), right)), "none"
        for mismatch in ("LOG", "ADD", "DELETE", "REPLACE"):
            rule = {
                "headerMatches": f'{{"name": "X-My-Token", "value": "1", "mismatch": "{mismatch}"}}'
            }
            assert allowed([rule], request("GET", "/", ("x-my-token", "2")))
            assert not allowed([rule], asked)
        assert allowed([{"headers": "X-My-Token: 3", "path": "/"}], asked, deny=True)
    assert not allowed([token], request(), deny=True)


def test_host() -> None:
    assert allowed([{"host": r".*\.example\.com"}], request(host="a.example.com"))
    assert not allowed([{"host": r".*\.example\.com"}], request(host="example.com.evil"))


@pytest.mark.parametrize("path", ["/a", "/b", "/c"])
@pytest.mark.parametrize(
    "rules",
    [
        [{"path": "/a"}, {"path": "/b", "headers": "x-y"}, {"path": "/c", "method": "PUT"}],
        [{"method": "PUT"}],
        [{"method": "GET"}],
        [{}],
    ],
)
@pytest.mark.parametrize("header", ["x-y", "x_y", "z"])
def test_paths_apart_from_the_rest(rules: list[dict[str, str]], path: str, header: str) -> None:
    matcher = HttpRule.compile([HttpRule(rule) for rule in rules])
    asked = request("GET", "/other", (header, "1"))
    test = path_test(matcher, asked)
    assert test is not None
    assert test(path.encode()) == matcher({**asked, "path": path.encode()})


def test_paths_cannot_be_told_apart() -> None:
    rule = HttpRule({"headerMatches": '{"name": "a", "value": "1", "mismatch": "ADD"}'})
    assert path_test(HttpRule.compile([rule]), request()) is None
    assert path_test(HttpRule.compile([HttpRule({"path": "/a"})], deny=True), request()) is None


def test_deny_rules() -> None:
    assert allowed([{"path": "/private.*"}], request("GET", "/private/x"), deny=True)
    match = '{"name": "a", "secret": "no/such"}'
    assert allowed([{"headerMatches": match}], request(), deny=True), "in doubt it is denied"


@pytest.mark.parametrize(
    ("pairs", "key", "words"),
    [
        ({"method": "("}, "method", "not a valid RE2"),
        ({"patch": "x"}, "patch", "unknown key"),
        ({"headers": "a b: c"}, "headers", "cannot be a header's name"),
        ({"headers": ": c"}, "headers", "method, path and host"),
        ({"headers": "a:"}, "headers", "no value"),
        ({"headers": ":path: /x"}, "headers", "method, path and host"),
        ({"headers": "Host: x"}, "headers", "use host"),
        ({"headers": "a: \x01"}, "headers", "one line of text"),
        ({"headerMatches": "x"}, "headerMatches", "not JSON"),
        ({"headerMatches": "[]"}, "headerMatches", "must be a mapping"),
        ({"headerMatches": '{"value": "x"}'}, "headerMatches", "cannot be a header's name"),
        ({"headerMatches": '{"name": "a", "x": "y"}'}, "headerMatches", "unknown key"),
        ({"headerMatches": '{"name": "a", "value": 1}'}, "headerMatches", "must be text"),
        ({"headerMatches": '{"name": "a", "mismatch": "PASS"}'}, "headerMatches", "LOG, ADD"),
        ({"headerMatches": '{"name": "a", "mismatch": "ADD"}'}, "headerMatches", "needs a value"),
        ({"headerMatches": '{"name": "a", "secret": "../x"}'}, "headerMatches", "namespace/name"),
        (
            {"headerMatches": '{"name": "Content-Length", "value": "0", "mismatch": "REPLACE"}'},
            "headerMatches",
            "cannot change",
        ),
    ],
)
def test_refused(pairs: dict[str, str], key: str, words: str) -> None:
    with pytest.raises(RuleError, match=words) as error:
        HttpRule(pairs)
    assert error.value.key == key


def edits(mismatch: str, *headers: tuple[str, str], value: str = "1") -> HeaderEdits:
    item = f'{{"name": "A", "value": "{value}", "mismatch": "{mismatch}"}}'
    matcher = HttpRule.compile([HttpRule({"headerMatches": item})])
    verdict: object = matcher(request("GET", "/", *headers))
    assert isinstance(verdict, HeaderEdits)
    return verdict


@pytest.mark.parametrize(
    ("mismatch", "value", "expected"),
    [
        ("", "1", HeaderEdits(True)),
        ("", "2", HeaderEdits(False, missing=((b"a", b"1"),))),
        ("", None, HeaderEdits(False, missing=((b"a", b"1"),))),
        ("LOG", "2", HeaderEdits(True, missing=((b"a", b"1"),))),
        ("LOG", "1", HeaderEdits(True)),
        ("ADD", "2", HeaderEdits(True, add=((b"a", b"1"),), missing=((b"a", b"1"),))),
        ("ADD", "1", HeaderEdits(True)),
        ("DELETE", "2", HeaderEdits(True, remove=(b"a",), rejected=((b"a", b"2"),))),
        ("DELETE", None, HeaderEdits(True)),
        (
            "REPLACE",
            "2",
            HeaderEdits(
                True, (b"a",), ((b"a", b"1"),), missing=((b"a", b"1"),), rejected=((b"a", b"2"),)
            ),
        ),
        ("REPLACE", None, HeaderEdits(True, add=((b"a", b"1"),), missing=((b"a", b"1"),))),
    ],
)
def test_mismatches(mismatch: str, value: str | None, expected: HeaderEdits) -> None:
    verdict = edits(mismatch, *([("a", value)] if value is not None else []))
    assert verdict == expected


def test_edits_are_applied_in_order() -> None:
    items = [
        '{"name": "a", "value": "1", "mismatch": "REPLACE"}',
        '{"name": "a", "value": "1", "mismatch": "ADD"}',
        '{"name": "b", "value": "x", "mismatch": "DELETE"}',
    ]
    matcher = HttpRule.compile([HttpRule({"headerMatches": "\n".join(items)})])
    verdict: object = matcher(request("GET", "/", ("a", "2"), ("b", "y"), ("c", "z")))
    assert isinstance(verdict, HeaderEdits)
    assert verdict.apply(((b"a", b"2"), (b"b", b"y"), (b"c", b"z"))) == ((b"c", b"z"), (b"a", b"1"))


def test_edits_of_every_rule_that_matches() -> None:
    rules = [
        HttpRule({"headerMatches": '{"name": "a", "value": "1", "mismatch": "ADD"}'}),
        HttpRule(
            {"path": "/other", "headerMatches": '{"name": "b", "value": "1", "mismatch": "ADD"}'}
        ),
        HttpRule({}),
    ]
    verdict: object = HttpRule.compile(rules)(request())
    assert isinstance(verdict, HeaderEdits)
    assert verdict
    assert verdict.add == ((b"a", b"1"),)


def secret_rule(folder: Path, more: str = "") -> HttpRule:
    return HttpRule(
        {"headerMatches": f'{{"name": "x-key", "secret": "ns/key"{more}}}'}, Secrets(folder)
    )


def test_secrets(tmp_path: Path) -> None:
    matcher = HttpRule.compile([secret_rule(tmp_path)])
    assert not matcher(request("GET", "/", ("x-key", "s3cret"))), "no secret, no match"
    assert not matcher(request("GET", "/", ("x-key", "")))
    assert not matcher(request())
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "key").write_text("s3cret\n")
    matcher = HttpRule.compile([secret_rule(tmp_path)])
    assert matcher(request("GET", "/", ("x-key", "s3cret")))
    verdict: object = matcher(request("GET", "/", ("x-key", "wrong")))
    assert verdict == HeaderEdits(
        False, missing=((b"x-key", REDACTED),), secret=frozenset([b"x-key"])
    )
    assert (
        b"s3cret"
        not in repr(log_fields(request("GET", "/", ("x-key", "s3cret")), verdict)).encode()
    )


def test_a_value_stands_in_for_a_missing_secret(tmp_path: Path) -> None:
    matcher = HttpRule.compile([secret_rule(tmp_path, ', "value": "else"')])
    assert matcher(request("GET", "/", ("x-key", "else")))
    assert not matcher(request("GET", "/", ("x-key", "")))


def test_log_fields_hide_credentials() -> None:
    fields = log_fields(request("GET", "/", ("authorization", "Basic x"), ("a", "b")))
    assert fields["headers"] == ((b"authorization", REDACTED), (b"a", b"b"))


def test_wire_form() -> None:
    rule = HttpRule(
        {
            "method": "GET",
            "host": "h",
            "headers": "X-A: 1\nX-B\nX-C: [0-9]+",
            "headerMatches": '{"name": "d", "value": "1", "mismatch": "LOG"}\n'
            '{"name": "e", "secret": "n/s"}',
        }
    )
    again = HttpRule.from_proto(rule.to_proto())
    assert again.conditions == rule.conditions
    assert again.matches == rule.matches
