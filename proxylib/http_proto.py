"""HTTP rules as cilium's xDS carries them: Envoy's HeaderMatcher, and header_matches.

Everything that is not known is refused: it may be the part that was to protect something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from google.protobuf import unknown_fields
from google.protobuf.message import Message

from proxylib import regex
from proxylib.errors import RuleError
from proxylib.http_headers import TOKEN, HeaderMatch, MatchAction, MismatchAction, check_match
from proxylib.http_match import PSEUDO_HEADERS, Condition, Kind
from proxylib.proto import npds_pb2 as npds
from proxylib.proto.headers_pb2 import HeaderMatcher, StringMatcher


def rule_from_proto(
    rule: npds.HttpNetworkPolicyRule,
) -> tuple[tuple[Condition, ...], tuple[HeaderMatch, ...]]:
    """The conditions and header matches of `rule`. Raises RuleError for what cannot be enforced."""
    _refuse_unknown("", rule)
    return tuple(map(_condition, rule.headers)), tuple(map(_match, rule.header_matches))


def rule_to_proto(
    conditions: Iterable[Condition], matches: Iterable[HeaderMatch]
) -> npds.HttpNetworkPolicyRule:
    """The wire form of what a policy document can say."""
    rule = npds.HttpNetworkPolicyRule()
    for condition in conditions:
        matcher = rule.headers.add(name=condition.name)
        if condition.kind == "regex":
            matcher.string_match.safe_regex.regex = condition.value
        elif condition.kind == "exact":
            matcher.string_match.exact = condition.value
        else:
            matcher.present_match = True
    for match in matches:
        rule.header_matches.add(
            name=match.name,
            value=match.value,
            value_sds_secret=match.secret,
            mismatch_action=npds.HeaderMatch.MismatchAction.ValueType(match.on_mismatch),
        )
    return rule


def _condition(matcher: HeaderMatcher) -> Condition:
    _refuse_unknown(matcher.name, matcher)
    name = matcher.name.lower()
    if not (name in PSEUDO_HEADERS or TOKEN.fullmatch(name)):
        raise RuleError("http_rules", matcher.name, "cannot be a header's name")
    kind, value, bounds, invert = "", "", (0, 0), matcher.invert_match
    match matcher.WhichOneof("header_match_specifier"):
        case None:
            kind = "present"
        case "present_match":
            # The absence of a header is the contrary of its presence.
            kind, invert = "present", invert != (not matcher.present_match)
        case "range_match":
            kind, bounds = "range", (matcher.range_match.start, matcher.range_match.end)
        case "safe_regex_match":
            kind, value = "regex", matcher.safe_regex_match.regex
        case "string_match":
            kind, value = _string(name, matcher.string_match)
        case specifier:
            kind, value = specifier.removesuffix("_match"), getattr(matcher, specifier)
    if kind == "regex":
        regex.check(name, value)
    if kind in ("prefix", "suffix", "contains") and not value:
        raise RuleError("http_rules", name, f"an empty {kind} matches anything")
    return Condition(
        ":authority" if name == "host" else name,
        cast("Kind", kind),
        value,
        bounds,
        matcher.string_match.ignore_case and kind != "regex",
        invert,
        matcher.treat_missing_header_as_empty,
    )


def _string(name: str, matcher: StringMatcher) -> tuple[str, str]:
    _refuse_unknown(name, matcher)
    match matcher.WhichOneof("match_pattern"):
        case "safe_regex":
            _refuse_unknown(name, matcher.safe_regex)
            return "regex", matcher.safe_regex.regex
        case "exact" | "prefix" | "suffix" | "contains" as kind:
            return kind, getattr(matcher, kind)
        case kind:
            raise RuleError("http_rules", name, f"a string_match with {kind or 'no pattern'}")


def _match(item: npds.HeaderMatch) -> HeaderMatch:
    _refuse_unknown(item.name, item)
    try:
        match = HeaderMatch(
            item.name.lower(),
            item.value,
            item.value_sds_secret,
            MatchAction(item.match_action),
            MismatchAction(item.mismatch_action),
        )
    except ValueError as error:
        raise RuleError("header_matches", item.name, str(error)) from error
    check_match("header_matches", match)
    return match


def _refuse_unknown(name: str, message: Message) -> None:
    unknown = unknown_fields.UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise RuleError("http_rules", name, f"has field {number}, which is not supported")
