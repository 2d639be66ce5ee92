"""The parsers for hosts' tests, at both levels: every op once, in both directions."""

from __future__ import annotations

import pytest

from proxylib import FilterResult
from proxylib.testing import check_chunking
from tests.conftest import OpenHost, text_log
from tests.native.chost import CHost, Rig

PASS, DROP, INJECT, MORE = 1, 2, 3, 0


def test_passer(open_host: OpenHost) -> None:
    host = open_host("test.passer")
    assert host.client(b"any", b"\x00\xff") == b"any\x00\xff"
    assert host.server(b"thing") == b"thing"
    assert host.ops == [(PASS, 3), (PASS, 2), (PASS, 5)]


def test_passer_refuses_one_policy(rig: Rig) -> None:
    number, _ = rig.endpoint()
    result = rig.process.new_connection(
        rig.instance, number, "test.passer", policy_name="invalid-policy"
    )
    assert result == FilterResult.POLICY_DROP


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize(
    ("lines", "here", "there", "ops"),
    [
        (b"PASS 1\n", b"PASS 1\n", b"", [(PASS, 7)]),
        (b"DROP 1\n", b"", b"", [(DROP, 7)]),
        (b"INSERT\n", b"INSERT\n", b"", [(INJECT, 7), (DROP, 7)]),
        (b"INJECT\n", b"", b"INJECT\n", [(DROP, 7)]),
        (b"PASS\nDROP\nINSERT\nPASS\n", b"PASS\nINSERT\nPASS\n", b"",
         [(PASS, 5), (DROP, 5), (INJECT, 7), (DROP, 7), (PASS, 5)]),
        (b"PAS", b"", b"", [(MORE, 1)]),
    ],
)  # fmt: skip
def test_line_parser(
    open_host: OpenHost,
    reply: bool,
    lines: bytes,
    here: bytes,
    there: bytes,
    ops: list[tuple[int, int]],
) -> None:
    host = open_host("test.lineparser")
    feed = host.server if reply else host.client
    assert feed(lines) == here
    assert host.ops == ops
    if reply and there:
        # A host sends what a reply injects into requests with the next request.
        assert host.take(reply=False) + host.client(b"PASS\n") == there + b"PASS\n"
    else:
        assert host.take(not reply) == there


def test_line_parser_inserts_more_than_a_buffer(open_host: OpenHost) -> None:
    host = open_host("test.lineparser")
    line = b"INSERT\n"
    assert host.client(line * 500) == line * 500
    assert host.client(b"PASS\n") == b"PASS\n"


def test_unknown_line_closes(open_host: OpenHost) -> None:
    host = open_host("test.lineparser")
    host.client(b"PASS\nWHAT\n")
    assert host.closed
    assert host.ops == [(PASS, 5), (4, 2)]


def test_header_parser(open_host: OpenHost) -> None:
    rules = [{"prefix": "GET", "suffix": "1"}, {"contains": "free"}]
    host = open_host("test.headerparser", rules)
    assert host.client(b"GET a1\nGET a2\n  GET b1 \nso free so\n") == (
        b"GET a1\n  GET b1 \nso free so\n"
    )
    assert host.take(reply=True) == b"Line dropped: GET a2\n"
    assert host.server(b"replies pass\n") == b"replies pass\n"
    assert [fields["status"] for _, fields in text_log(host)] == (
        ["PASS", "DROP", "PASS", "PASS", "PASS"]
    )


@pytest.mark.parametrize(
    ("chunks", "out", "ops"),
    [
        ([b"7:PASS1"], b"7:PASS1", [(PASS, 7)]),
        ([b"10:PASS", b"xyz"], b"10:PASSxyz", [(PASS, 10)]),
        ([b"10:DROP", b"xyz7:PASS1"], b"7:PASS1", [(DROP, 10), (PASS, 7)]),
        ([b"1", b"0:INS", b"ERTx"], b"10:INSERTx",
         [(MORE, 1), (MORE, 4), (INJECT, 10), (DROP, 10)]),
    ],
)  # fmt: skip
def test_block_parser(
    open_host: OpenHost, chunks: list[bytes], out: bytes, ops: list[tuple[int, int]]
) -> None:
    host = open_host("test.blockparser")
    assert b"".join(host.client(chunk) for chunk in chunks) == out
    assert host.ops == ops


@pytest.mark.parametrize(
    "block", [b"x:PASS", b"1:PASS", b"0:", b"-7:PASS1", b"99999999999999999999999:PASS", b"4:odd"]
)
def test_bad_block_closes(open_host: OpenHost, block: bytes) -> None:
    host = open_host("test.blockparser")
    assert host.client(block) == b""
    assert host.closed


def test_block_far_beyond_what_is_here_is_passed_unseen(rig: Rig) -> None:
    host = CHost(rig, "test.blockparser")
    size = 1 << 20
    head = b"%d:PASS" % size
    assert host.client(head) == head
    rest = b"x" * (size - len(head))
    calls = len(host.calls)
    assert host.client(*(rest[i : i + 65536] for i in range(0, len(rest), 65536))) == rest
    assert len(host.calls) - calls <= 1, "the library is asked once the block has passed"
    host.close()


def test_chunking() -> None:
    check_chunking(
        "test.lineparser",
        [(False, b"PASS\nDROP\nINSERT\nINJECT\nPASS\n"), (True, b"PASS\nINSERT\nDROP\n")],
    )
    check_chunking("test.headerparser", [(False, b"GET\nPUT\n")], [{"prefix": "GET"}])
