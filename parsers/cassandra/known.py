"""Most of the traffic: whole frames that pass without being read to the end.

A request that executes what was prepared, or whose statement begins as one that the
policy has allowed, passes like that one; so does the reply to a request from which
nothing is to be learnt.  The policy is asked once per statement, and again when it
changes.

Whatever is out of the ordinary is left where it is, for requests.py and replies.py to
judge: first of its kind, denied, in several frames' pieces, compressed, about several
tables, asked while a USE is under way, or while the policy is in audit mode.
"""

from __future__ import annotations

import struct

from parsers.cassandra.frames import HEADER, HEADER_SIZE, SEGMENTED, Opcode
from parsers.cassandra.requests import KEYSPACE
from parsers.cassandra.session import MAX_WAITING, Asked, Kind, Session, asking
from parsers.cassandra.statements import head_of, read_head
from proxylib import EntryType, Matcher

_QUERY, _EXECUTE, _RESULT = map(int, (Opcode.QUERY, Opcode.EXECUTE, Opcode.RESULT))
_REQUEST, _RESPONSE = map(int, (EntryType.Request, EntryType.Response))

_FRONT = struct.Struct(HEADER.format + "i")
"""A header, and the first number of the body: the length of a statement; or that of an id,
and the id's first two bytes."""

MAX_HEADS = 64
"""Most beginnings of statements that a connection remembers."""


class KnownRequests:
    """The requests of one connection that pass like others."""

    __slots__ = ("_audited", "_heads", "_keyspace", "_matcher", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._matcher: Matcher | None = None
        self._audited = False
        self._heads: dict[bytes, Asked] = {}
        """What is allowed that begins so, in `_keyspace`."""
        self._keyspace = b""

    def judge(self, data: bytes, at: int) -> int:
        """Let requests go on from `at`, as far as they are known; returns where they end."""
        session = self._session
        connection = session.connection
        matcher = connection.matcher
        if matcher is not self._matcher or session.keyspace is not self._keyspace:
            self._forget(matcher)
        version = session.version
        if not version or self._audited:
            return at
        log = connection.log if connection.logged else None
        asked, sent, now = session.asked, session.sent, session.now
        allowed = session.allowed
        room = MAX_WAITING - session.waiting
        size = len(data)
        count = 0
        while size - at >= _FRONT.size and count < room:
            byte, flags, stream, opcode, length, first = _FRONT.unpack_from(data, at)
            end = at + HEADER_SIZE + length
            if byte != version or flags or stream < 0 or stream in asked or end > size or first < 0:
                break
            if opcode == _EXECUTE:
                behind = at + HEADER_SIZE + 2 + (first >> 16)
                prepared_id = data[at + HEADER_SIZE + 2 : behind]
                known = allowed.get(prepared_id) or self._prepared(prepared_id)
                if known is None or behind > end:
                    break
            elif opcode == _QUERY:
                known = self._statement(data, at + HEADER_SIZE + 4, first, end)
                if known is None:
                    break
            else:
                break
            reading = known.reading
            if reading is None:
                break
            if log is not None:
                log(_REQUEST, reading.accesses[0])
            if reading.loose:
                session.loose.add(stream)
            asked[stream] = known
            sent[stream] = now
            count += 1
            at = end
        session.waiting += count
        return at

    def _forget(self, matcher: Matcher) -> None:
        """The policy has changed, or the keyspace in use."""
        session = self._session
        self._matcher = matcher
        self._audited = session.connection.decision.would is not None
        self._keyspace = session.keyspace
        self._heads.clear()
        session.allowed.clear()

    def _prepared(self, prepared_id: bytes) -> Asked | None:
        """What executing the id asks for, if that is allowed."""
        asked = self._session.prepared.get(prepared_id)
        if asked is None or not self._allows(asked):
            return None
        self._session.allowed[prepared_id] = asked
        return asked

    def _statement(self, data: bytes, start: int, length: int, end: int) -> Asked | None:
        """What the statement data[start:start + length] asks for, if that is allowed.

        end: that of its frame, in which its parameters must not name a keyspace.
        """
        session = self._session
        behind = start + length
        flags = behind + (2 if session.version < SEGMENTED else 5)
        if flags >= end or data[flags] & KEYSPACE or session.uses:
            return None
        head = head_of(data[start:behind])
        asked = self._heads.get(head)
        if asked is None and head:
            reading = read_head(head, self._keyspace)
            if reading is None:
                return None
            asked = asking(reading)
            if not self._allows(asked):
                return None
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[head] = asked
        return asked

    def _allows(self, asked: Asked) -> bool:
        """Whether requests for this may pass without being looked at again."""
        if asked.kind != Kind.PLAIN or asked.reading is None or self._matcher is None:
            return False
        accesses = asked.reading.accesses
        return len(accesses) == 1 and "error" not in accesses[0] and self._matcher(accesses[0])


class KnownReplies:
    """The replies of one connection that say nothing that we need."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def judge(self, data: bytes, at: int) -> int:
        """Take up replies from `at` as far as they are plain; returns where they end."""
        session = self._session
        connection = session.connection
        log = connection.log if connection.logged else None
        asked, sent, loose, now = session.asked, session.sent, session.loose, session.now
        version = session.version | 0x80
        size = len(data)
        while size - at >= HEADER_SIZE:
            byte, _, stream, opcode, length = HEADER.unpack_from(data, at)
            end = at + HEADER_SIZE + length
            if opcode != _RESULT or byte != version or length < 0 or end > size:
                break
            known = asked.get(stream)
            if known is None or known.kind or known.reading is None:
                break
            del asked[stream]
            latency = now - sent.pop(stream)
            loose.discard(stream)
            session.waiting -= len(known.done)
            if log is not None:
                for fields in known.done:
                    log(_RESPONSE, fields, "", latency)
            at = end
        return at
