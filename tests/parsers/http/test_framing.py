"""Where messages end, held against another reader of HTTP/1.1: h11.

What hypothesis makes up is valid; h11 must see in it, once the parser has passed it on,
the same messages that went in, and the parser must not care how it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from proxylib.testing import Outcome, play
from proxylib.testing.strategies import cut_at
from tests.parsers.http.reading import requests_in
from tests.parsers.http.talk import DENIED

Headers = list[tuple[bytes, bytes]]

TEXT = st.binary(max_size=200)
NAMES = st.sampled_from([b"X-A", b"x-b", b"Accept", b"Cookie", b"X_C"])
VALUES = st.text('abc 019,;=\t"\\()\xe9', max_size=30).map(
    lambda text: text.strip(" \t").encode("latin-1")
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
PATHS = st.text("abc/019-_~", max_size=20).map(
    lambda text: "/" + "/".join(part for part in text.split("/") if part)
)


@dataclass(frozen=True)
class Body:
    """Content, and how it is framed: in one piece, or in chunks with trailers."""

    content: bytes
    cuts: tuple[int, ...] | None
    trailers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def header(self) -> bytes:
        if self.cuts is None:
            return b"Content-Length: %d\r\n" % len(self.content)
        return b"Transfer-Encoding: Chunked\r\n"

    @property
    def wire(self) -> bytes:
        if self.cuts is None:
            return self.content
        pieces = cut_at(self.content, self.cuts)
        chunks = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return chunks + b"00\r\n" + lines(list(self.trailers)) + b"\r\n"


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    content = draw(TEXT)
    if draw(st.booleans()):
        return Body(content, None)
    cuts = sorted(draw(st.sets(st.integers(1, max(len(content) - 1, 1)), max_size=4)))
    cuts = [cut for cut in cuts if cut < len(content)]
    return Body(content, tuple(cuts), tuple(draw(HEADERS)))


@dataclass(frozen=True)
class Exchange:
    """A request and its reply. path: under /deny it never gets to the server."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: Body | None
    status: int
    interim: int
    reply: Body

    @property
    def denied(self) -> bool:
        return self.path.startswith(b"/deny")

    @property
    def request_bytes(self) -> bytes:
        head = b"%b %b HTTP/1.1\r\nHost: a\r\n" % (self.method, self.path)
        body = self.body
        framing, wire = (body.header, body.wire) if body else (b"", b"")
        return head + lines(list(self.headers)) + framing + b"\r\n" + wire

    @property
    def reply_bytes(self) -> bytes:
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * self.interim
        head = b"HTTP/1.1 %d Whatever it is\r\n" % self.status
        if self.status == 204:
            return interim + head + b"\r\n"
        body = b"" if self.method == b"HEAD" or self.status == 304 else self.reply.wire
        return interim + head + self.reply.header + b"\r\n" + body


def lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


EXCHANGES = st.builds(
    Exchange,
    st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE", b"X!"]),
    st.tuples(st.sampled_from(["/ok", "/deny"]), PATHS).map(lambda p: "".join(p).encode()),
    HEADERS.map(tuple),
    st.none() | bodies(),
    st.sampled_from([200, 204, 304, 404, 500]),
    st.integers(0, 1),
    bodies(),
)
RULES = [{"path": "/ok.*"}]


def relay(exchanges: list[Exchange], turns: list[int], size: int) -> Outcome:
    """Play `exchanges`; `turns` says how many requests are pipelined at a time."""
    dialogue: list[tuple[bool, bytes]] = []
    rest = list(exchanges)
    for turn in [*turns, len(rest)]:
        some, rest = rest[:turn], rest[turn:]
        dialogue.append((False, b"".join(one.request_bytes for one in some)))
        dialogue.append((True, b"".join(one.reply_bytes for one in some if not one.denied)))
    dialogue = [(reply, data) for reply, data in dialogue if data]
    whole = play("http", dialogue, RULES)
    pieces = lambda data: [data[i : i + size] for i in range(0, len(data), size)]  # noqa: E731
    assert play("http", dialogue, RULES, cut=pieces) == whole
    return whole


@settings(max_examples=150)
@given(
    st.lists(EXCHANGES, min_size=1, max_size=5),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(1, 40),
)
def test_h11_sees_the_same_messages(exchanges: list[Exchange], turns: list[int], size: int) -> None:
    outcome = relay(exchanges, turns, size)
    assert not outcome.closed
    allowed = [one for one in exchanges if not one.denied]
    assert requests_in(outcome.to_server) == [
        (one.method, one.path, one.body.content if one.body else b"") for one in allowed
    ]
    assert replies_in(outcome.to_client, exchanges) == [
        (403, b"Access denied\r\n" if one.method != b"HEAD" else b"")
        if one.denied
        else (one.status, content_of(one))
        for one in exchanges
    ]
    assert outcome.to_client.count(DENIED[:20]) == len(exchanges) - len(allowed)


def content_of(one: Exchange) -> bytes:
    return b"" if one.method == b"HEAD" or one.status in (204, 304) else one.reply.content


def replies_in(data: bytes, exchanges: list[Exchange]) -> list[tuple[int, bytes]]:
    """What h11 as a client reads: status and content of each reply."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    found = []
    for one in exchanges:
        client.send(h11.Request(method=one.method, target=one.path, headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        status, content = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            else:
                assert isinstance(event, h11.InformationalResponse), event
        found.append((status, content))
        client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return found
