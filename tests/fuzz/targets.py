"""What the fuzzer feeds, and what must hold whatever it feeds.

An input is a dialogue: bursts that the marker separates, the client's first, then
in turn the server's and the client's.  For every parser: nothing panics, and cuts
do not matter.  For each also: what reaches the server holds only requests that
the policy allows, read by a second reader.  What is not fed to parsers is text: see
documents.py.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

from kafka.protocol.consumer import FetchRequest, ListOffsetsRequest, OffsetCommitRequest
from kafka.protocol.metadata import MetadataRequest

from proxylib.testing import Outcome, check_chunking
from tests.fuzz.documents import policy
from tests.parsers.http.reading import requests_in

MARKER = b"\n--\n"


def dialogue(data: bytes) -> list[tuple[bool, bytes]]:
    """The bursts of a fuzzer's input."""
    return [(bool(index % 2), burst) for index, burst in enumerate(data.split(MARKER)[:8])]


def _play(parser: str, data: bytes, rules: list[dict[str, str]]) -> Outcome:
    outcome = check_chunking(parser, dialogue(data[:4096]), rules)
    for record in outcome.log:
        assert not str(record.fields.get("status", "")).startswith("Panic"), record
    return outcome


def r2d2(data: bytes) -> None:
    """READ of files under /ok/."""
    outcome = _play("r2d2", data, [{"cmd": "READ", "file": "^/ok/"}])
    for line in outcome.to_server.split(b"\r\n")[:-1]:
        assert line.startswith(b"READ /ok/"), line


def memcache(data: bytes) -> None:
    """get of keys that begin with "ok", under which no value ever goes to the server."""
    outcome = _play("memcache", data, [{"command": "get", "keyPrefix": "ok"}])
    sent = outcome.to_server
    if sent[:1] >= b"\x80":
        while sent:
            magic, opcode, key_length, extras, body = struct.unpack(">BBHBxxxI", sent[:12])
            assert magic == 0x80, sent
            if opcode != 10:
                assert opcode in (0, 9, 12, 13), opcode
                assert key_length == body, sent
                assert sent[24:26] == b"ok", sent
            assert not extras, sent
            sent = sent[24 + body :]
        return
    for line in sent.split(b"\n")[:-1]:
        assert b"\0" not in line
        command, *keys = [word for word in line.removesuffix(b"\r").split(b" ") if word]
        if command == b"mn":
            continue
        if command == b"mg":
            flags = keys[1:]
            keys = keys[:1]
            assert not any(flag[:1] in (b"N", b"T") for flag in flags), line
            if any(flag[:1] == b"b" for flag in flags):
                keys = [base64.b64decode(keys[0], validate=True)]
        else:
            assert command in (b"get", b"gets", b"bget"), line
        assert keys, line
        assert all(key.startswith(b"ok") and len(key) <= 250 for key in keys), line


def cassandra(data: bytes) -> None:
    """SELECT of tables in the keyspace "ok"; what is sent in plain frames names it."""
    outcome = _play("cassandra", data, [{"query_action": "select", "query_table": r"^ok\."}])
    sent = outcome.to_server
    while len(sent) >= 9 and sent[0] in (3, 4):
        _, flags, _, opcode, length = struct.unpack(">BBhBI", sent[:9])
        assert opcode in (1, 5, 7, 9, 10, 11, 13, 15), opcode
        if opcode in (7, 9) and not flags & 5:
            statement = sent[13 : 9 + length].lower()
            assert b"ok" in statement, statement
            assert b"select" in statement, statement
        sent = sent[9 + length :]


def kafka(data: bytes) -> None:
    """Consuming the topic "ok"; what is sent is read by kafka-python's own reader."""
    outcome = _play("kafka", data, [{"role": "consume", "topic": "ok"}])
    sent = outcome.to_server
    while len(sent) >= 12:
        length, key, version, correlation = struct.unpack_from(">ihhi", sent)
        frame, sent = sent[: 4 + length], sent[4 + length :]
        assert key in KAFKA_CONSUME, (key, version)
        reader = KAFKA_READERS.get(key)
        # Our own queries, and what is named by id, may be about anything.
        if reader is None or correlation == -1 or (key == 1 and version > 12):
            continue
        try:
            topics = reader.decode(frame, version=version, header=True, framed=True).topics
        except Exception:
            # A broker refuses it as well.
            continue
        if key == 3 and (topics is None or (version == 0 and not topics)):
            continue
        for topic in topics or ():
            name = topic if isinstance(topic, str) else getattr(topic, "name", None) or topic.topic
            assert name == "ok" or not name, frame


KAFKA_CONSUME = {
    1,
    2,
    3,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    17,
    18,
    22,
    23,
    28,
    36,
    68,
    71,
    72,
    75,
    76,
    78,
    79,
}
KAFKA_READERS: dict[int, Any] = {
    1: FetchRequest,
    2: ListOffsetsRequest,
    3: MetadataRequest,
    8: OffsetCommitRequest,
}


def http(data: bytes) -> None:
    """Paths under /ok/; what is sent is read by h11."""
    outcome = _play("http", data, [{"path": "/ok/.*"}])
    if any(record.fields.get("status") == 101 for record in outcome.log):
        return
    for method, target, _ in requests_in(outcome.to_server, strict=False):
        path = target.partition(b"://")[2].partition(b"/")[2] if target[:1] != b"/" else target[1:]
        assert path.startswith(b"ok/"), (method, target)
        assert b"/../" not in path.partition(b"?")[0], target


def redis(data: bytes) -> None:
    """GET of keys that begin with "ok"; what is sent is read as the server would."""
    outcome = _play("redis", data, [{"command": "GET", "keyPrefix": "ok"}, {"command": "MULTI"}])
    sent = outcome.to_server
    while sent:
        if sent[:1] == b"*":
            args, sent = _redis_array(sent)
        else:
            line, _, sent = sent.partition(b"\n")
            args = [word.strip(b"'\"") for word in line.split(None, 1)]
        if not args or args[0].upper() == b"MULTI":
            continue
        if args == [b"GET"]:
            # Stands for a denied request; without a key the server refuses it.
            assert any(record.entry_type.name == "Denied" for record in outcome.log)
            continue
        assert args[0].strip(b"'\"").upper() == b"GET" or b"\\" in args[0], args
        if len(args) > 1 and b"\\" not in args[1]:
            assert args[1].startswith(b"ok"), args


def _redis_array(sent: bytes) -> tuple[list[bytes], bytes]:
    """The arguments of the request that `sent` begins with, and what follows it."""
    count, _, sent = sent[1:].partition(b"\r\n")
    args = []
    for _ in range(int(count)):
        length, _, sent = sent[1:].partition(b"\r\n")
        if not length:
            return args, b""  # the rest is still to come
        args.append(sent[: int(length)])
        sent = sent[int(length) + 2 :]
    return args, sent


TARGETS: dict[str, Callable[[bytes], None]] = {
    "cassandra": cassandra,
    "http": http,
    "kafka": kafka,
    "memcache": memcache,
    "policy": policy,
    "r2d2": r2d2,
    "redis": redis,
}
