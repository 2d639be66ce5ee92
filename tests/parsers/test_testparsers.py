"""The parsers for hosts' tests, in pure Python and through the library."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import parsers.testparsers  # noqa: F401 - registers them
from proxylib import DROP, MORE, PASS, Op, Parser, register_parser_factory
from proxylib.connection import Connection
from proxylib.parser import ClassFactory
from proxylib.registry import get_parser_factory
from proxylib.testing import Host, check_chunking
from tests.conftest import OpenHost, text_log


def test_passer(open_host: OpenHost) -> None:
    host = open_host("test.passer")
    assert host.client(b"any\0thing") == b"any\0thing"
    assert host.server(b"x" * 100_000) == b"x" * 100_000
    assert host.log == []


def test_passer_refuses_a_policy_name() -> None:
    factory = get_parser_factory("test.passer")
    host = Host("test.passer")
    assert factory is not None
    refused = Connection(
        host.instance,
        "test.passer",
        ingress=True,
        src_id=1,
        dst_id=2,
        src_addr="1.1.1.1:1",
        dst_addr="2.2.2.2:80",
        port=80,
        policy_name="invalid-policy",
        log=lambda *args: None,
    )
    assert factory.create(refused) is None


def test_lineparser(open_host: OpenHost) -> None:
    host = open_host("test.lineparser")
    assert host.client(b"PASS 1\nDROP 2\nPASS 3\n") == b"PASS 1\nPASS 3\n"
    assert host.client(b"INSERT 4\nPASS 5\n") == b"INSERT 4\nPASS 5\n"
    assert host.client(b"INJECT 6\n") == b""
    assert host.take(reply=True) == b"INJECT 6\n"
    assert host.client(b"PA") == b""
    assert host.client(b"SS\n") == b"PASS\n"
    assert host.server(b"PASS back\nINSERT here\n") == b"PASS back\nINSERT here\n"
    assert host.client(b"JUMP\n") == b""
    assert host.closed


def test_headerparser(open_host: OpenHost) -> None:
    host = open_host("test.headerparser", [{"prefix": "GET"}, {"contains": "mid", "suffix": "end"}])
    assert host.client(b" GET x \nPUT y\na mid end\nmid\n") == b" GET x \na mid end\n"
    assert host.take(reply=True) == b"Line dropped: PUT y\nLine dropped: mid\n"
    assert host.server(b"anything\n") == b"anything\n"
    assert text_log(host) == [
        ("Request", {"status": "PASS"}),
        ("Denied", {"status": "DROP"}),
        ("Request", {"status": "PASS"}),
        ("Denied", {"status": "DROP"}),
        ("Request", {"status": "PASS"}),
    ]


def test_blockparser(open_host: OpenHost) -> None:
    host = open_host("test.blockparser")
    assert host.client(b"6:PASS6:DROP8:INSERT7:xPASS") == b"6:PASS8:INSERT7:xPASS"
    assert host.client(b"8:INJECT") == b""
    assert host.take(reply=True) == b"8:INJECT"
    assert host.server(b"6:PASS") == b"6:PASS"
    assert [fields for _, fields in text_log(host)] == [
        {"status": status} for status in ("200", "503", "200", "200")
    ]


def test_blockparser_judges_before_a_block_is_whole(open_host: OpenHost) -> None:
    host = open_host("test.blockparser")
    assert host.client(b"1") == b""
    assert host.client(b"0:PASS") == b"10:PASS"
    assert host.client(b"abc9:DROP") == b"abc"
    assert host.client(b"xxx9:INS") == b""
    assert host.client(b"ERT") == b""
    assert host.client(b"x") == b"9:INSERTx"


@pytest.mark.parametrize("block", [b"x:PASS", b"1:PASS", b":PASS", b"-6:PASS", b"9" * 21, b"5:NOP"])
def test_blockparser_refuses(open_host: OpenHost, block: bytes) -> None:
    host = open_host("test.blockparser")
    assert host.client(block) == b""
    assert host.closed


def test_cuts_do_not_matter() -> None:
    stream = b"PASS 1\nDROP 2\nINSERT 3\nINJECT 4\nPASS 5\n"
    check_chunking("test.lineparser", [(False, stream), (True, stream)])
    check_chunking("test.headerparser", [(False, stream)], [{"prefix": "PASS"}])
    blocks = b"6:PASS6:DROP8:INSERT8:INJECT12:PASSxxxxx"
    check_chunking("test.blockparser", [(False, blocks), (True, blocks)])


def test_the_chunking_check_notices() -> None:
    """A parser that judges by the sizes of chunks must fail it."""

    class Sizes(Parser):
        def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
            size = sum(map(len, data))
            return (PASS, size) if size > 1 else (DROP, 1) if size else (MORE, 1)

    register_parser_factory("test.sizes", ClassFactory(Sizes))
    with pytest.raises(AssertionError, match="byte_by_byte"):
        check_chunking("test.sizes", [(False, b"abc")])
