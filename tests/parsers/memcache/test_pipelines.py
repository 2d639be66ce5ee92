"""Random pipelines: the client must get the answer to each request, in order.

The server is a model: it looks at the first letter of a key for what to answer,
so that the right answer to every request is known beforehand, and with it all
that the client may see, wherever the streams are cut and however they interleave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.memcache.binary import HEADER, error_reply
from proxylib import EntryType
from proxylib.testing import Host, check_chunking
from proxylib.testing.strategies import chunks, cut_at

RULES = [{"command": c, "keyRegex": "^[hm]"} for c in ("get", "writeGroup")] + [
    {"command": c} for c in ("noop", "stats", "version")
]
DENIED = b"CLIENT_ERROR access denied\r\n"


@dataclass(frozen=True)
class Exchange:
    """A request, the model's reply to it, and what the client gets."""

    request: bytes
    reply: bytes
    seen: bytes
    allowed: bool = True
    quiet: bool = False


Item = tuple[str, str, int]
"""Command, key, and a number for its value and opaque."""

VALUES = [b"", b"x", b"\r\nEND\r\n", b"get secret\r\n", b"VALUE h 0 3\r\n", b"y" * 300]
KEYS = ["hit", "miss", "denied"]
NO_MEMORY = b"SERVER_ERROR out of memory storing object\r\n"
FAILURES = [b"NS\r\n", b"EX\r\n", b"NS O1\r\n", NO_MEMORY]
"""What a quiet ms is answered with; the last could be anyone's."""


def text_exchange(item: Item) -> Exchange:
    command, key_name, number = item
    key, value = key_name.encode(), VALUES[number % len(VALUES)]
    hit, denied = key_name == "hit", key_name == "denied"
    size = len(value)
    quiet = False
    silent = False
    if command == "get":
        request = b"get %b\r\n" % key
        reply = b"VALUE %b 0 %d\r\n%b\r\n" % (key, size, value) * hit + b"END\r\n"
    elif command == "gets2":
        request = b"gets  %b hit%d\r\n" % (key, number)
        reply = b"VALUE hit 5 %d 77\r\n%b\r\nEND\r\n" % (size, value)
    elif command == "set":
        request = b"set %b 0 0 %d\r\n%b\r\n" % (key, size, value)
        reply = b"STORED\r\n" if hit else b"SERVER_ERROR object too large for cache\r\n"
    elif command == "set noreply":
        silent = True
        request = b"add %b 1 -1 %d noreply\r\n%b\r\n" % (key, size, value)
        reply = b""
    elif command == "incr":
        request = b"incr %b 1\r\n" % key
        reply = b"%d\r\n" % number if hit else b"NOT_FOUND\r\n"
    elif command == "mg":
        request = b"mg %b v O%d\r\n" % (key, number)
        reply = b"VA %d O%d\r\n%b\r\n" % (size, number, value) if hit else b"EN\r\n"
    elif command == "mg q":
        quiet = True
        request = b"mg %b v k q\r\n" % key
        reply = b"VA %d k%b\r\n%b\r\n" % (size, key, value) if hit else b""
    elif command == "ms q":
        quiet = True
        request = b"ms %b %d q\r\n%b\r\n" % (key, size, value)
        reply = b"" if hit else FAILURES[number % len(FAILURES)]
    elif command == "stats":
        request = b"stats\r\n"
        reply = b"STAT pid %d\r\nSTAT name END\r\nEND\r\n" % number
        denied = False
    else:
        request, reply, denied = b"mn\r\n", b"MN\r\n", False
    if denied:
        return Exchange(request, b"", b"" if silent else DENIED, False, quiet)
    return Exchange(request, reply, reply, True, quiet)


def binary_exchange(item: Item) -> Exchange:
    command, key_name, number = item
    key, value = key_name.encode(), VALUES[number % len(VALUES)]
    hit, denied = key_name == "hit", key_name == "denied"
    opcode = {"get": 0, "gets2": 12, "set": 1, "set noreply": 14, "incr": 4, "mg": 3}.get(command)
    quiet = False
    extras, body = b"", b""
    if command == "mg q":
        opcode, quiet = 9, True
    elif command == "ms q":
        opcode, quiet = 17, True
    elif command == "stats":
        opcode, key, denied = 16, b"", False
    elif opcode is None:
        opcode, key, denied = 10, b"", False
    if opcode in (1, 3, 17):
        extras = bytes(8)
    if opcode in (1, 3, 14, 17):
        body = value
    content = extras + key + body
    lengths = (len(key), len(extras), 0, 0, len(content))
    request = HEADER.pack(0x80, opcode, *lengths, number, 0) + content
    answer = value if opcode in (0, 9, 12) and hit else b""
    status = 0 if hit or not key else 1
    reply = HEADER.pack(0x81, opcode, 0, 0, 0, status, len(answer), number, 0) + answer
    if opcode == 16:
        stat = b"pid1"
        reply = HEADER.pack(0x81, 16, 3, 0, 0, 0, 4, number, 0) + stat + reply
    if quiet and hit == (opcode == 17):
        reply = b""
    if denied:
        return Exchange(
            request, b"", error_reply(opcode, number, 8, b"access denied"), False, quiet
        )
    return Exchange(request, reply, reply, True, quiet)


COMMANDS = ["get", "gets2", "set", "set noreply", "incr", "mg", "mg q", "ms q", "stats", "mn"]
# What is hard to tell apart comes more often.
COMMANDS += ["mg", "mg q", "mg q", "ms q", "get"]
items = st.lists(
    st.tuples(st.sampled_from(COMMANDS), st.sampled_from(KEYS), st.integers(0, 60)),
    min_size=1,
    max_size=12,
)


def noop(number: int, exchange: Exchange, binary: bool) -> tuple[bytes, bytes]:
    """The no-op that a denied request is sent on as, and the model's reply to it."""
    if not binary:
        return b"mn\r\n", b"MN\r\n"
    opaque = HEADER.unpack_from(exchange.request)[7]
    return (
        HEADER.pack(0x80, 10, 0, 0, 0, 0, 0, opaque, 0),
        HEADER.pack(0x81, 10, 0, 0, 0, 0, 0, opaque, 0),
    )


def served(exchanges: Iterable[Exchange], binary: bool) -> tuple[list[bytes], list[bytes]]:
    """What reaches the server, and what it replies to each of these."""
    requests, replies = [], []
    quiet = False
    for number, exchange in enumerate(exchanges):
        if exchange.allowed:
            requests.append(exchange.request)
            replies.append(exchange.reply)
            if exchange.quiet:
                quiet = True
            elif exchange.request == b"mn\r\n" or (binary and exchange.reply):
                quiet = False
        elif quiet and exchange.seen:
            request, reply = noop(number, exchange, binary)
            requests.append(request)
            replies.append(reply)
            quiet = False
    return requests, replies


def check_order(
    drawn: list[Item], exchange: Callable[[Item], Exchange], binary: bool, data: st.DataObject
) -> None:
    exchanges = [exchange(item) for item in drawn]
    requests, replies = served(exchanges, binary)
    host = Host("memcache", RULES)
    stream = b"".join(e.request for e in exchanges)
    arrived = b""
    seen = b""
    answered = 0
    for chunk in data.draw(chunks(stream), label="client"):
        arrived += host.client(chunk)
        seen += host.take(True)
        # The server answers some of what it has got whole.
        complete = 0
        while complete < len(requests) and len(b"".join(requests[: complete + 1])) <= len(arrived):
            complete += 1
        upto = data.draw(st.integers(answered, max(answered, complete)), label="answered")
        for piece in data.draw(chunks(b"".join(replies[answered:upto])), label="server"):
            seen += host.server(piece)
            arrived += host.take(False)
        answered = max(answered, upto)
    for piece in data.draw(chunks(b"".join(replies[answered:])), label="server"):
        seen += host.server(piece)
    assert not host.closed
    assert arrived == b"".join(requests)
    assert seen == b"".join(e.seen for e in exchanges)
    if any(e.quiet and e.reply == NO_MEMORY for e in exchanges):
        return
    logged = [r.fields for r in host.log if r.entry_type == EntryType.Response]
    assert len(logged) == sum(bool(e.reply) for e in exchanges)
    # Only the answers to quiet requests cannot be told whose they are.
    strays = sum(fields.get("command") == b"" for fields in logged)
    assert binary or strays == sum(e.quiet and bool(e.reply) for e in exchanges)


@settings(max_examples=400)
@given(items, st.data())
def test_text_answers_keep_their_order(drawn: list[Item], data: st.DataObject) -> None:
    check_order(drawn, text_exchange, False, data)


@settings(max_examples=400)
@given(items, st.data())
def test_binary_answers_keep_their_order(drawn: list[Item], data: st.DataObject) -> None:
    check_order(drawn, binary_exchange, True, data)


@given(items, st.booleans(), st.lists(st.integers(1, 400), max_size=10, unique=True))
def test_cuts_do_not_matter(drawn: list[Item], binary: bool, cuts: list[int]) -> None:
    exchanges = [(binary_exchange if binary else text_exchange)(item) for item in drawn]
    _, replies = served(exchanges, binary)
    dialogue = [
        (False, b"".join(e.request for e in exchanges)),
        (True, b"".join(replies)),
        (False, exchanges[0].request),
    ]
    at = sorted(cuts)
    outcome = check_chunking("memcache", dialogue, RULES, also=[lambda data: cut_at(data, at)])
    assert not outcome.closed


@given(st.binary(max_size=200), st.binary(max_size=200), st.lists(st.integers(1, 200), unique=True))
def test_noise(client: bytes, server: bytes, cuts: list[int]) -> None:
    at = sorted(cuts)
    dialogue = [(False, client), (True, server), (False, server), (True, client)]
    check_chunking("memcache", dialogue, RULES, also=[lambda data: cut_at(data, at)])


words = st.sampled_from(
    b"get gets gat set cas add ms mg md ma me mn stats quit watch delete incr noreply hit denied"
    b" 0 1 3 -1 99999999999 q k v b O1 O2 N30 T1 ME VA VALUE END HD EN MN OK ERROR STORED STAT"
    b" \r\n \n \0 \r".split(b" ")
)
speech = st.lists(words, max_size=30).map(b" ".join).map(lambda s: s.replace(b" \r\n ", b"\r\n"))


@given(speech, speech, st.lists(st.integers(1, 100), unique=True))
def test_babble(client: bytes, server: bytes, cuts: list[int]) -> None:
    at = sorted(cuts)
    dialogue = [(False, client), (True, server), (False, client), (True, server)]
    check_chunking("memcache", dialogue, RULES, also=[lambda data: cut_at(data, at)])
