"""What becomes of a request: its header read, its topics found, the policy asked.

A request is looked at as far as its last topic.  Nothing is done here; requests.py
does as it is judged here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from parsers.kafka import answers, roles, schema
from parsers.kafka.rule import ALL, Grant
from parsers.kafka.schema import APIS, UNDERSTOOD
from parsers.kafka.state import Listing, State
from parsers.kafka.topics import Short, length_at, reader, skip_tags
from proxylib import ParserError

MAX_REQUEST = 100 << 20
"""Longest request, bytes: Kafka's own default (socket.request.max.bytes)."""

MAX_HEADER = 64 << 10
"""Longest header of a request, bytes: a client id of the greatest length, and tags."""

MAX_SEEN = 8 << 20
"""Most bytes of a request looked at for its topics. Producers send 1 MiB at a time
unless told otherwise; a larger request for several topics is refused as too large."""

LOOK = 4096
"""Bytes of a request looked at where only the log is interested in its topics."""

HEADER = Struct(">ihhi")
"""Length, API key, API version, correlation id."""


class Request(NamedTuple):
    """The header of a request, and where it lies in the data."""

    start: int
    end: int
    body: int
    key: int
    version: int
    correlation: int
    client: bytes
    api: str
    answered: bool
    """False for what the server does not answer: Produce without acks."""


class OtherVersion(NamedTuple):
    """An ApiVersions request of a version that is not understood."""

    end: int
    correlation: int


class Wait(NamedTuple):
    """So many bytes are missing."""

    bytes: int


class Allow(NamedTuple):
    """The request may go on. listing and session are for its reply: see Owed.

    until: index behind all that this rests on; 0 if it rests on more than the request.
    """

    topics: Sequence[bytes] = ()
    listing: Listing | None = None
    session: frozenset[bytes] | None = None
    until: int = 0


class Ask(NamedTuple):
    """These topic ids must be known first."""

    ids: Sequence[bytes]


class Refuse(NamedTuple):
    """The request is answered with an error; 0: the one of its API.

    partly: the API is allowed, and only some of the topics are not.
    """

    topics: Sequence[bytes] = ()
    error: int = 0
    partly: bool = False


Verdict = Wait | Allow | Ask | Refuse


def next_request(data: bytes, at: int, size: int) -> Request | OtherVersion | Wait:
    """The request that begins at `at`.

    Raises ParserError for what is not one, or not of a version that is understood.
    """
    if size - at < HEADER.size:
        return Wait(HEADER.size - (size - at))
    length, key, version, correlation = HEADER.unpack_from(data, at)
    if not HEADER.size - 4 <= length <= MAX_REQUEST:
        raise ParserError(f"a request of {length} bytes (limit {MAX_REQUEST})")
    end = at + 4 + length
    if (known := UNDERSTOOD.get((key, version))) is None:
        if key == roles.API_VERSIONS and version > 0:
            return OtherVersion(end, correlation)
        name = APIS[key].name if key in APIS else f"API key {key}"
        raise ParserError(f"{name} version {version} is not understood")
    visible = min(end, at + LOOK)
    if size < visible:
        return Wait(visible - size)
    limit = min(end, size)
    api, flexible = known
    try:
        client, body = _read_header(data, at + 12, limit, key, version, flexible)
        answered = key != roles.PRODUCE or _acks(data, body, limit, version, flexible) != 0
    except Short as short:
        if short.end - at > MAX_HEADER:
            raise ParserError(f"a request header of more than {MAX_HEADER} bytes") from None
        return _wait(short, at, end, size)
    return Request(at, end, body, key, version, correlation, client, api, answered)


def _read_header(
    data: bytes, at: int, limit: int, key: int, version: int, flexible: bool
) -> tuple[bytes, int]:
    """The client id, and where the body begins."""
    if key == roles.CONTROLLED_SHUTDOWN and version == 0:
        return b"", at
    length, at = length_at(data, at, limit, False, 2)
    end = at + max(length, 0)
    if end > limit:
        raise Short(end)
    client = data[at:end]
    if not flexible:
        return client, end
    if end < limit and not data[end]:
        return client, end + 1
    end = skip_tags(data, end, limit)
    if end > limit:
        raise Short(end)
    return client, end


def _acks(data: bytes, at: int, limit: int, version: int, flexible: bool) -> int:
    """How many brokers are to confirm a Produce request."""
    if version >= 3:
        length, at = length_at(data, at, limit, flexible, 2)
        at += max(length, 0)
    if at + 2 > limit:
        raise Short(at + 2)
    return int.from_bytes(data[at : at + 2], "big", signed=True)


def _wait(short: Short, start: int, end: int, size: int) -> Wait:
    """As many bytes as are missing, or as are there: what is read again is read seldom."""
    if short.end > end:
        raise ParserError(f"a field runs past the end of its request of {end - start} bytes")
    seen = size - start
    return Wait(max(short.end - size, min(end - size, seen, MAX_SEEN - seen)))


def judge(state: State, request: Request, data: bytes, size: int, *, final: bool) -> Verdict:
    """What the policy says of `request`.

    final: topic ids that are not known now never will be.
    """
    start, end, body, key, version, _, client, _, _ = request
    grants = state.grants
    grant = grants[key, version, client]
    if key == roles.SASL_HANDSHAKE and version == 0:
        # What follows it has no headers: nobody could tell tokens from requests.
        return Refuse(error=answers.UNSUPPORTED_VERSION)
    read = reader(key, version)
    if read is None:
        if grant.bare:
            return Allow(until=body)
        if key == roles.INIT_PRODUCER_ID and _no_transaction(data, body, end, version):
            # A number for an idempotent producer. Whoever may see topics gets one,
            # and so learns from its Produce request what it may not do.
            grant = grants[roles.METADATA, version, client]
        return Allow() if grant.bare else Refuse()
    names: list[bytes] = []
    ids: list[bytes] = []
    judged = grant.bare and not grant.any
    limit = min(end, size) if judged else min(end, start + LOOK)
    last = 0
    try:
        if (last := read(data, body, limit, names, ids)) > end:
            raise Short(last)
    except Short as short:
        last = 0
        wait = _wait(short, start, end, size)
        if judged:
            if short.end - start > MAX_SEEN:
                return Refuse(names, answers.MESSAGE_TOO_LARGE)
            return wait
    unknown: list[bytes] = []
    if ids:
        known = state.topic_ids
        names += [known[topic_id] for topic_id in ids if topic_id in known]
        unknown = [topic_id for topic_id in ids if topic_id not in known]
    if not judged:
        names += map(show_id, unknown)
        if not grant.any:
            return Refuse(names)
        return Allow(names, until=0 if unknown or last > size else last)
    if not all(map(grant.topic, names)):
        if key == roles.METADATA and names == [ALL]:
            return Allow(names, Listing(client))
        return Refuse([*names, *map(show_id, unknown)], partly=True)
    if unknown:
        if not final:
            return Ask(unknown)
        return Refuse([*names, *map(show_id, unknown)], answers.UNKNOWN_TOPIC_ID, partly=True)
    if key == roles.FETCH and version >= _FIRST_SESSIONS:
        return _judge_session(state, request, data, grant, names, last)
    if key == roles.SHARE_FETCH:
        return _judge_share_session(state, request, data, grant, names)
    return Allow(names, until=last)


_FIRST_SESSIONS = 7
"""The first version of Fetch that has sessions (KIP-227)."""


def _no_transaction(data: bytes, body: int, limit: int, version: int) -> bool:
    """Whether an InitProducerId request has no transactional id."""
    flexible = schema.request(roles.INIT_PRODUCER_ID, version).flexible
    try:
        return length_at(data, body, limit, flexible, 2)[0] < 0
    except Short:
        raise ParserError("an InitProducerId request that ends too early") from None


def _judge_session(
    state: State, request: Request, data: bytes, grant: Grant, names: list[bytes], last: int
) -> Verdict:
    """A fetch that goes on with a session fetches topics that it does not name."""
    at = request.body + schema.request(request.key, request.version).offset("SessionId")
    session, epoch = _SESSION.unpack_from(data, at)
    if epoch < 0:
        return Allow(names, until=last)
    if epoch == 0:
        return Allow(names, session=frozenset(names))
    topics = state.extend_session(session, names)
    if topics is None or not all(map(grant.topic, topics)):
        return Refuse(names, answers.FETCH_SESSION_ID_NOT_FOUND)
    return Allow(names)


_SESSION = Struct(">ii")
"""A fetch session's id, and how far it has got: 0 for its beginning, -1 for its end."""


def _judge_share_session(
    state: State, request: Request, data: bytes, grant: Grant, names: list[bytes]
) -> Verdict:
    at = request.body
    for _ in ("group", "member"):
        length, at = length_at(data, at, request.end, True, 2)
        at += max(length, 0)
    session = data[request.body : at]
    epoch = int.from_bytes(data[at : at + 4], "big", signed=True)
    if epoch == 0:
        state.begin_session(session, names)
    elif epoch > 0:
        topics = state.extend_session(session, names)
        if topics is None or not all(map(grant.topic, topics)):
            return Refuse(names, answers.SHARE_SESSION_NOT_FOUND)
    return Allow(names)


def show_id(topic_id: bytes) -> bytes:
    """A topic id as Kafka's tools write it."""
    return base64.urlsafe_b64encode(topic_id).rstrip(b"=")
