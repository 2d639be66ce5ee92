"""The framed layer: frames to messages, messages to verdicts, and any chunking the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import Exact, FramedParser, L7Rule, Message, ParserError, length_prefix, lines
from proxylib.parser import ClassFactory
from proxylib.policy import compile_policies
from proxylib.proto import npds_pb2 as npds
from proxylib.testing import Host
from proxylib.testing.host import ENDPOINT


class Words(FramedParser):
    """One word per line; replies have a length."""

    framing = lines(b"\n", limit=32)
    reply_framing = length_prefix(1)

    class Rule(L7Rule):
        word = Exact()

    def __init__(self, connection: object) -> None:
        super().__init__(connection)  # type: ignore[arg-type]
        self.replies: list[bytes] = []

    def request(self, frame: bytes) -> Message | None:
        if frame == b"panic":
            raise ParserError("no panic here")
        return Message(word=frame) if frame else None

    def denied(self, request: Message) -> bytes:
        return b"" if request["word"] == b"silent" else b"\x02no"

    def response(self, frame: bytes) -> None:
        self.replies.append(frame)


FACTORY = ClassFactory(Words)


def open_host(*words: str) -> Host:
    policy = npds.NetworkPolicy(endpoint_ips=[ENDPOINT])
    rule = policy.ingress_per_port_policies.add(port=80).rules.add(l7_proto="words")
    for word in words:
        rule.l7_rules.l7_allow_rules.add(rule={"word": word})
    host = Host("words", None, factory=FACTORY)
    host.instance.policy = compile_policies([policy.SerializeToString()], lambda name: FACTORY)
    return host


def test_verdicts() -> None:
    host = open_host("good")
    assert host.client(b"good\nbad\ngood\n") == b"good\ngood\n"
    assert host.ops == [(1, 5), (2, 4), (1, 5), (0, 1)]
    assert host.take(reply=True) == b"\x02no"
    assert [(r.entry_type.name, r.fields) for r in host.log] == [
        ("Request", {"word": b"good"}),
        ("Denied", {"word": b"bad"}),
        ("Request", {"word": b"good"}),
    ]


def test_none_passes_unjudged_and_unlogged() -> None:
    host = open_host("good")
    assert host.client(b"\n\n") == b"\n\n"
    assert host.log == []


def test_denied_without_a_reply() -> None:
    host = open_host("good")
    assert host.client(b"silent\n") == b""
    assert host.take(reply=True) == b""


def test_replies_have_their_own_framing_and_are_seen_whole() -> None:
    host = open_host("good")
    assert host.server(b"\x03ab") == b""
    assert host.ops == [(0, 1)]
    assert host.server(b"c\x00") == b"\x03abc\x00"
    assert isinstance(host.connection.parser, Words)
    assert host.connection.parser.replies == [b"\x03abc", b"\x00"]


@pytest.mark.parametrize("request_", [b"panic\n", b"x" * 32])
def test_parser_error_closes(request_: bytes) -> None:
    host = open_host("good")
    assert host.client(request_) == b""
    assert host.closed
    assert str(host.log[0].fields["status"]).startswith("Parser error: ")


@given(
    st.lists(st.sampled_from([b"good", b"bad", b"", b"silent", b"x" * 31]), max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_any_chunking_is_the_same(words: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(word + b"\n" for word in words)
    whole, cut = open_host("good"), open_host("good")
    out, at, i = b"", 0, 0
    while at < len(stream):
        out += cut.client(stream[at : at + sizes[i % len(sizes)]])
        at += sizes[i % len(sizes)]
        i += 1
    assert out == whole.client(stream)
    assert cut.take(reply=True) == whole.take(reply=True)
    assert cut.log == whole.log
