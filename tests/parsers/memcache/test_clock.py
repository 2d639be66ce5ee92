"""Each reply's entry says how long it took since its own request."""

from __future__ import annotations

from parsers.memcache import Memcache
from proxylib.testing import Host
from tests.parsers.memcache.test_binary import reply, request


class Clocked(Host):
    """A connection whose clock is set by hand."""

    now = 0

    def __init__(self, rules: list[dict[str, str]] | None = None) -> None:
        super().__init__("memcache", rules)
        self.connection.monotonic_ns = lambda: self.now
        self.connection.attach(Memcache(self.connection))

    def latencies(self) -> list[int]:
        return [entry.latency for entry in self.log if entry.entry_type.name == "Response"]


def test_text_replies_in_several_chunks() -> None:
    host = Clocked()
    host.now = 1000
    host.client(b"get a\r\nmg b v\r\n")
    host.now = 1500
    host.client(b"set c 0 0 1\r\nx\r\n")
    host.now = 2000
    host.server(b"END\r\n")
    host.now = 2200
    host.server(b"VA 2\r\nhi\r\nSTORED\r\n")
    assert host.latencies() == [1000, 1200, 700]
    host.now = 9000
    host.client(b"get a\r\n")
    host.now = 9001
    host.server(b"VALUE a 0 1\r\nx\r\nEND\r\n")
    assert host.latencies()[3:] == [1]


def test_denied_requests_have_their_place() -> None:
    host = Clocked([{"command": "get", "keyPrefix": "k"}])
    host.now = 100
    host.client(b"get k\r\nget no\r\n")
    host.now = 200
    host.client(b"get no\r\nget k2\r\n")
    host.now = 1000
    host.server(b"END\r\nEND\r\n")
    assert host.latencies() == [900, 800]


def test_binary_replies() -> None:
    host = Clocked()
    host.now = 10
    host.client(request(0, b"a", opaque=1))
    host.now = 20
    host.client(request(0, b"b", opaque=2))
    host.now = 50
    host.server(reply(0, opaque=1) + reply(0, opaque=2))
    assert host.latencies() == [40, 30]


def test_marks_do_not_pile_up() -> None:
    host = Clocked()
    for turn in range(1000):
        host.now = turn
        host.client(b"get a\r\n")
        host.client(b"get b\r\n")
        host.server(b"END\r\nEND\r\n")
    parser = host.connection.parser
    assert isinstance(parser, Memcache)
    assert len(parser._text._clock._marks) <= 2
