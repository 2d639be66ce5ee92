"""From client to server: each request passed on, or answered in the server's place.

Of an allowed request what is behind its topics passes unseen.  A denied one is read
to its end, because its answer lists what it asked for, and dropped on the way.

A request for a topic id that is not known yet is held, with those behind it, while we
ask the server (a Metadata request of ours, whose reply the client never sees) what the
id stands for.  One too large to hold, or any under a host that could not be given it
later, is answered UNKNOWN_TOPIC_ID, upon which clients come again.

Metadata differs: without the brokers in its reply no client gets as far as an error, and
clients ask for all topics that they use at once.  So a denied one goes on for those of its
topics that are allowed, and the others are added to the reply, with the error; and of a
request for all topics the reply is left those that are allowed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

from parsers.kafka import answers, roles, schema
from parsers.kafka.judge import (
    HEADER,
    MAX_REQUEST,
    Allow,
    Ask,
    OtherVersion,
    Refuse,
    Request,
    Wait,
    judge,
    next_request,
)
from parsers.kafka.rule import Grants
from parsers.kafka.state import OWN_QUERY, PROTO, Listing, Owed, State
from parsers.kafka.topics import NO_ID
from parsers.kafka.wire import Source, Values, decode, encode
from proxylib import DROP, INJECT, MORE, PASS, EntryType, Properties

MAX_HELD = 256 << 10
"""Most bytes of requests held while we ask for topic ids."""

MAX_HELD_REQUESTS = 256

MAX_HEAD = 256
"""Most bytes of an allowed request that are remembered, per API and version."""

MAX_ASKED = 5_000
"""Most topic ids in one request of ours."""

QUERY_VERSION = 12
"""Of Metadata: the first that can be asked by topic id."""

_CLIENT = b"proxylib"
_REQUEST = EntryType.Request
_DENIED = EntryType.Denied


class Refusal(NamedTuple):
    """A denied request that is being read. header: of the request, without its length."""

    request: Request
    verdict: Refuse
    header: bytes
    source: Source
    steps: Generator[int, None, Values]


class Allowed(NamedTuple):
    """The last allowed request of an API and version, as far as its verdict rests on it.

    Clients say the same again and again, but for the correlation id and what is behind
    the topics. head: from the client id on, to the end of the last topic. It holds under
    these grants, while no topic id has lost its name (forgotten). fields: for the log.
    """

    head: bytes
    grants: Grants
    forgotten: int
    fields: Properties
    key: int
    version: int
    answered: bool


class Requests:
    """The request direction of one connection."""

    __slots__ = ("_allowed", "_asked", "_held", "_refusal", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._allowed: dict[bytes, Allowed] = {}
        """By API key and version, as they stand in the request."""
        self._refusal: Refusal | None = None
        self._held: list[bytes] = []
        """Whole requests that wait for the reply to a request of ours."""
        self._asked: frozenset[bytes] = frozenset()
        """Topic ids that the server was asked for."""

    def on_data(self, end_stream: bool, data: bytes, ops: list[int]) -> None:
        """Judge the requests at the front of `data`."""
        size = len(data)
        at, need = 0, 1
        if self._refusal is not None:
            at = self._read_refused(self._refusal, data, 0, ops)
        while 0 <= at < size:
            known = self._allowed.get(data[at + 4 : at + 8])
            if known is not None and (end := self._again(known, data, at)):
                ops += (PASS, end - at)
                at = end
                continue
            request = next_request(data, at, size)
            if not isinstance(request, Wait) and self._held:
                missing = self._room_for(request.end - at, request.end - size)
                if missing == 0 and isinstance(request, Request):
                    self._held.append(data[at : request.end])
                    ops += (DROP, request.end - at)
                    at = request.end
                    continue
                if missing <= 0:
                    self.release(ops, final=True)
                else:
                    request = Wait(missing)
            if isinstance(request, Wait):
                need = request.bytes
                break
            if isinstance(request, OtherVersion):
                self._answer_version(request.correlation)
                ops += (DROP, request.end - at)
                at = request.end
                continue
            verdict = judge(self._state, request, data, size, final=False)
            if isinstance(verdict, Ask):
                missing = self._room_for(request.end - at, request.end - size)
                if missing > 0:
                    need = missing
                    break
                ops += (INJECT, self._ask(verdict.ids))
                if missing == 0:
                    self._held.append(data[at : request.end])
                    ops += (DROP, request.end - at)
                    at = request.end
                    continue
                verdict = Refuse((), answers.UNKNOWN_TOPIC_ID)
            if isinstance(verdict, Wait):
                need = verdict.bytes
                break
            if isinstance(verdict, Allow):
                self._allow(request, verdict)
                if 0 < verdict.until <= min(at + MAX_HEAD, size):
                    self._remember(request, verdict, data)
                ops += (PASS, request.end - at)
                at = request.end
            else:
                at = self._refuse(request, verdict, data, ops)
        if not 0 <= at <= size:
            return
        if end_stream:
            self.release(ops, final=True)
            if at < size:
                status = {"status": "the connection ends inside a request"}
                self._state.connection.log(_DENIED, status, PROTO)
        ops += (MORE, need)

    def _allow(self, request: Request, verdict: Allow) -> None:
        self._state.connection.log(_REQUEST, _fields(request, verdict.topics), PROTO)
        if request.answered:
            _, _, _, key, version, correlation, *_ = request
            state = self._state
            session = verdict.session
            state.owe(Owed(correlation, key, version, b"", verdict.listing, session, state.now))

    def _remember(self, request: Request, verdict: Allow, data: bytes) -> None:
        start, _, _, key, version, _, _, _, answered = request
        state = self._state
        self._allowed[data[start + 4 : start + 8]] = Allowed(
            data[start + HEADER.size : verdict.until],
            state.grants,
            state.forgotten,
            _fields(request, verdict.topics),
            key,
            version,
            answered,
        )

    def _again(self, known: Allowed, data: bytes, at: int) -> int:
        """Allow a request that says the same as one before; returns its end, 0 if it does not."""
        state = self._state
        if (
            not data.startswith(known.head, at + HEADER.size)
            or known.grants is not state.grants
            or known.forgotten != state.forgotten
            or self._held
        ):
            return 0
        length, _, _, correlation = HEADER.unpack_from(data, at)
        if not HEADER.size - 4 + len(known.head) <= length <= MAX_REQUEST:
            return 0
        fields = {**known.fields, "correlation_id": correlation}
        state.connection.log(_REQUEST, fields, PROTO)
        if known.answered:
            state.owe(Owed(correlation, known.key, known.version, b"", None, None, state.now))
        return at + 4 + int(length)

    # Refusing.

    def _refuse(self, request: Request, verdict: Refuse, data: bytes, ops: list[int]) -> int:
        """Begin to refuse a request; returns as `_read_refused` does."""
        fields = _fields(request, verdict.topics)
        if error := verdict.error or (answers.TOPIC_AUTHORIZATION_FAILED if verdict.topics else 0):
            fields["error_code"] = error
        self._state.connection.log(_DENIED, fields, PROTO)
        source = Source(data, request.body, request.end - request.body)
        steps = decode(source, schema.request(request.key, request.version))
        header = data[request.start + 4 : request.body]
        refusal = Refusal(request, verdict, header, source, steps)
        return self._read_refused(refusal, data, request.start, ops)

    def _read_refused(self, refusal: Refusal, data: bytes, start: int, ops: list[int]) -> int:
        """Read on in a refused request and drop it; answer it at its end.

        start: of what is not yet dropped of it. Returns the index of the next request,
        -1 if `data` ends before.
        """
        source = refusal.source
        source.data = data
        try:
            missing = next(refusal.steps)
        except StopIteration as done:
            self._refusal = None
            if injected := self._answer(refusal, done.value):
                ops += (INJECT, injected)
            end = source.at + source.left
            ops += (DROP, end - start)
            return end if end <= len(data) else -1
        self._refusal = refusal
        if source.at > start:
            ops += (DROP, source.at - start)
        if source.at <= len(data):
            ops += (MORE, missing)
        source.at = 0
        return -1

    def _answer(self, refusal: Refusal, values: Values) -> int:
        """Answer a refused request; returns the bytes injected towards the server."""
        request, verdict = refusal.request, refusal.verdict
        key, version, correlation = request.key, request.version, request.correlation
        error = verdict.error or answers.error_of(key, values, topics=bool(verdict.topics))
        if key == roles.METADATA and verdict.partly:
            return self._forward_allowed(refusal, values, error)
        answer = answers.answer(key, version, correlation, values, error)
        if answer is not None:
            self._give(Owed(correlation, key, version, answer))
        return 0

    def _give(self, owed: Owed) -> None:
        """Send an answer of ours in its turn."""
        if self._state.pending:
            self._state.owe(owed)
        else:
            self._state.connection.inject(True, owed.answer)

    def _forward_allowed(self, refusal: Refusal, values: Values, error: int) -> int:
        """Ask for those topics that are allowed; the others are added to the reply."""
        _, _, _, key, version, correlation, client, _, _ = refusal.request
        may_see = self._state.grants[key, version, client].topic
        inner = schema.response(key, version)["Topics"].layout
        assert inner is not None, "topics are structs"
        allowed, denied = [], []
        for topic in values["Topics"] or ():
            topic_id = topic.get("TopicId", NO_ID)
            known = self._state.topic_ids.get(topic_id)
            name = topic["Name"] or known
            # Of a name and an id Kafka takes the id.
            same = topic_id == NO_ID or name == known
            if name is not None and same and may_see(name):
                allowed.append(topic)
                continue
            code = answers.UNKNOWN_TOPIC_ID if name is None else error
            denied.append(encode(inner, {"ErrorCode": code, "Name": name, "TopicId": topic_id}))
        # Version 0 cannot ask for no topics; it asks for all then, and none is kept.
        listing = Listing(client if allowed else None, b"".join(denied), len(denied))
        self._state.owe(Owed(correlation, key, version, b"", listing, None, self._state.now))
        body = encode(schema.request(key, version), {**values, "Topics": allowed})
        return self._send(refusal.header + body)

    def _send(self, request: bytes) -> int:
        return self._state.connection.inject(False, len(request).to_bytes(4, "big") + request)

    def _answer_version(self, correlation: int) -> None:
        """Say which versions of ApiVersions there are, in the oldest, as Kafka does."""
        key = roles.API_VERSIONS
        first, last = schema.APIS[key].versions
        versions = {"ApiKey": key, "MinVersion": first, "MaxVersion": last}
        values = {"ErrorCode": answers.UNSUPPORTED_VERSION, "ApiKeys": [versions]}
        answer = answers.frame(key, correlation, schema.response(key, 0), values)
        status = "ApiVersions of a version that is not understood"
        fields: Properties = {"status": status, "correlation_id": correlation}
        self._state.connection.log(_DENIED, fields, PROTO)
        self._give(Owed(correlation, key, 0, answer))

    # Holding.

    def _room_for(self, length: int, missing: int) -> int:
        """How many bytes are missing to hold a request; -1 if there is no room for it."""
        if (
            not self._state.connection.sends_both_ways
            or len(self._held) >= MAX_HELD_REQUESTS
            or length + sum(map(len, self._held)) > MAX_HELD
        ):
            return -1
        return max(missing, 0)

    def _ask(self, ids: Sequence[bytes]) -> int:
        """Ask the server for the names of `ids`; returns the bytes injected."""
        ids = list(dict.fromkeys(ids))[:MAX_ASKED]
        self._asked = frozenset(ids)
        values = {
            "Topics": [{"TopicId": topic_id, "Name": None} for topic_id in ids],
            "AllowAutoTopicCreation": False,
        }
        header = HEADER.pack(0, roles.METADATA, QUERY_VERSION, OWN_QUERY)[4:]
        header += len(_CLIENT).to_bytes(2, "big") + _CLIENT + b"\0"
        self._state.owe(Owed(OWN_QUERY, OWN_QUERY, QUERY_VERSION))
        return self._send(header + encode(schema.request(roles.METADATA, QUERY_VERSION), values))

    def release(self, ops: list[int], *, final: bool) -> None:
        """Judge the requests that were held; appends INJECT for what goes to the server.

        final: no topic id will be asked for again.
        """
        held, self._held = self._held, []
        for index, frame in enumerate(held):
            request = next_request(frame, 0, len(frame))
            assert isinstance(request, Request), "only whole requests are held"
            verdict = judge(self._state, request, frame, len(frame), final=final)
            if isinstance(verdict, Ask):
                if not self._asked.issuperset(verdict.ids):
                    ops += (INJECT, self._ask(verdict.ids))
                    self._held = held[index:]
                    return
                verdict = judge(self._state, request, frame, len(frame), final=True)
            if isinstance(verdict, Allow):
                self._allow(request, verdict)
                ops += (INJECT, self._state.connection.inject(False, frame))
            elif isinstance(verdict, Refuse):
                dropped: list[int] = []
                self._refuse(request, verdict, frame, dropped)
                # What it injects comes first; there is nothing to drop any more.
                ops += dropped[:-2]


def _fields(
    request: Request, topics: Sequence[bytes]
) -> dict[str, str | bytes | int | Sequence[bytes]]:
    """What the log says of a request."""
    fields: dict[str, str | bytes | int | Sequence[bytes]] = {
        "api": request.api,
        "api_key": request.key,
        "api_version": request.version,
        "correlation_id": request.correlation,
        "client_id": request.client,
    }
    if topics:
        fields["topics"] = topics
    return fields
