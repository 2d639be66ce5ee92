"""Header matches that policy documents cannot write, and the control server can send."""

from __future__ import annotations

import pytest

from proxylib.errors import RuleError
from proxylib.http_headers import (
    HeaderMatch,
    MatchAction,
    MismatchAction,
    check_match,
    header_condition,
    header_match,
)
from proxylib.http_match import Condition


def test_names_are_lower_case() -> None:
    assert header_condition("X-My-Header: True") == Condition("x-my-header", "exact", "True")
    assert header_match({"name": "X-A"}).name == "x-a"


def test_framing_headers_can_be_matched_and_not_changed() -> None:
    check_match("k", HeaderMatch("content-length", "0"))
    check_match("k", HeaderMatch("upgrade", on_match=MatchAction.FAIL))
    for match in (
        HeaderMatch("transfer-encoding", on_match=MatchAction.DELETE),
        HeaderMatch("content-length", "0", on_mismatch=MismatchAction.ADD),
        HeaderMatch("connection", "x", on_mismatch=MismatchAction.DELETE),
    ):
        with pytest.raises(RuleError, match="cannot change"):
            check_match("k", match)
