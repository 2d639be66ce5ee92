"""A stream cut anywhere gives the same bytes, verdicts and log."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxylib.testing import check_chunking
from proxylib.testing.strategies import cut_at, cuts
from tests.parsers.redis.wire import request, words

RULES = [
    {"keyPrefix": "a"},
    {"category": "transaction"},
    {"category": "pubsub"},
    {"command": "HELLO"},
]
REQUESTS = st.sampled_from(
    [
        words("GET a"),
        words("GET secret"),
        words("MULTI"),
        words("EXEC"),
        words("SUBSCRIBE x y"),
        words("UNSUBSCRIBE"),
        words("HELLO 3"),
        words("MSET a 1 ab 2 b 3"),
        request("SET", "a", b"GET secret\r\n" * 20),
        request("SET", "secret", b"GET a\r\n" * 20),
        b"GET 'a b'\r\n",
        b"\r\n",
        b"*2\r\n$3\r\nGET\r\n$-1\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nxyz",
    ]
)
REPLIES = st.sampled_from(
    [
        b"+OK\r\n",
        b"-ERR wrong number of arguments\r\n",
        b"$-1\r\n",
        b"*2\r\n$3\r\nabc\r\n*1\r\n:1\r\n",
        b"%1\r\n+a\r\n=5\r\ntxt:x\r\n",
        b">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
        b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nx\r\n:0\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$4\r\n+OK\n\r\n",
        b">2\r\n+x\r\n$200\r\n" + b"*1\r\n" * 50 + b"\r\n",
        b"$3\r\nabcX",
        b"*1\r\nQ",
    ]
)
DIALOGUES = st.lists(
    st.tuples(
        st.lists(REQUESTS, max_size=5).map(b"".join), st.lists(REPLIES, max_size=5).map(b"".join)
    ),
    max_size=3,
)


@settings(max_examples=200)
@given(DIALOGUES, st.integers(0, 3), st.data())
def test_cuts_do_not_matter(
    turns: list[tuple[bytes, bytes]], short: int, data: st.DataObject
) -> None:
    bursts = [burst for turn in turns for burst in enumerate(turn)]
    bursts = [(bool(reply), burst[: len(burst) - short]) for reply, burst in bursts]
    at = data.draw(cuts(max((len(burst) for _, burst in bursts), default=0)))
    check_chunking(
        "redis",
        bursts,
        RULES,
        also=[lambda burst: cut_at(burst, [place for place in at if place < len(burst)])],
    )
