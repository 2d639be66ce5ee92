"""From server to client: replies paired with requests, and the few that are changed.

Replies come in the order of the requests, each with its request's correlation id; a
reply nobody asked for closes the connection.  Answers of ours are put in their turn.
Of most replies only the first bytes are looked at, for the error in them; the rest
passes unseen, but for its last byte, so that an answer that is due next cannot overtake
it.

Read to their end are ApiVersions, narrowed to what we understand, and Metadata, which
tells the names of topic ids and from which topics are taken that a client may not see.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import Struct

from parsers.kafka import answers, roles, schema
from parsers.kafka.requests import Requests
from parsers.kafka.schema import Layout
from parsers.kafka.state import OWN_QUERY, PROTO, Listing, Owed, State
from parsers.kafka.topics import (
    NO_ID,
    Short,
    Step,
    length_at,
    skip_item,
    skip_tags,
    skipper,
)
from parsers.kafka.wire import Values, decode_whole, length
from proxylib import DROP, INJECT, MORE, PASS, EntryType, ParserError

LOOK = 512
"""Bytes of a reply looked at for its first error code: it stands behind a topic's name."""

MAX_SEEN = 12 << 20
"""Longest reply that is read to its end, bytes: Metadata of about 100,000 partitions."""

MAX_LEARNT = 1 << 20
"""Longest Metadata reply read only for its topic ids, bytes. Ids that are missing are
asked for when they are needed."""

_HEADER = Struct(">ii")
_RESPONSE = EntryType.Response
_ERRORS = ("ErrorCode", "PartitionErrorCode")

FindError = Callable[[bytes, int, int], tuple[int, int] | None]
"""``find(data, at, limit)``: the first error code of a response's body, and the index behind
it, if it has one before `limit`."""


class Replies:
    """The reply direction of one connection."""

    __slots__ = ("_errors", "_last_byte", "_requests", "_state")

    def __init__(self, state: State, requests: Requests) -> None:
        self._state = state
        self._requests = requests
        self._last_byte = False
        """Whether all but the last byte of a reply has passed."""
        self._errors: dict[tuple[int, int], tuple[bytes, int]] = {}
        """The last reply of each API and version, from behind its correlation id to its
        error code; and the error. Servers say the same again and again."""

    def on_data(self, data: bytes, ops: list[int]) -> None:
        """Follow the replies at the front of `data`."""
        state = self._state
        pending = state.pending
        at, size, need = 0, len(data), 1
        if self._last_byte and data:
            self._last_byte = False
            state.pop()
            ops += (PASS, 1)
            at = 1
        while True:
            while answer := state.answer_next():
                ops += (INJECT, state.connection.inject(True, answer))
            if at < size and not pending:
                raise ParserError("a reply to no request")
            if size - at < _HEADER.size:
                need = _HEADER.size - (size - at) if at < size else 1
                break
            length, correlation = _HEADER.unpack_from(data, at)
            if length < 4:
                raise ParserError(f"a reply of {length} bytes")
            end = at + 4 + length
            owed = pending[0]
            if correlation != owed.correlation:
                raise ParserError(
                    f"a reply to request {correlation} where that to {owed.correlation} is due"
                )
            look = _wanted(owed, length)
            visible = min(end, at + look)
            if size < visible:
                need = visible - size
                break
            if owed.key == OWN_QUERY:
                _metadata(state, owed, data, at, end, [])
                ops += (DROP, end - at)
                # Ours stays in front meanwhile: what it lets go comes behind it.
                released: list[int] = []
                self._requests.release(released, final=False)
                state.pop()
                at = end
                continue
            self._log(owed, data, at, visible)
            if look > LOOK:
                if owed.key == roles.METADATA:
                    _metadata(state, owed, data, at, end, ops)
                else:
                    self._versions(owed, data, at, end, ops)
                state.pop()
                at = end
                continue
            if owed.session is not None:
                _begin_session(state, owed, data, at, visible)
            if end > size:
                self._last_byte = True
                ops += (PASS, end - 1 - at)
                if end - 1 == size:
                    ops += (MORE, 1)
                return
            state.pop()
            ops += (PASS, end - at)
            at = end
        ops += (MORE, need)

    def _log(self, owed: Owed, data: bytes, at: int, limit: int) -> None:
        fields: dict[str, str | int] = {
            "api": schema.UNDERSTOOD[owed.key, owed.version][0],
            "api_key": owed.key,
            "api_version": owed.version,
            "correlation_id": owed.correlation,
        }
        error = self._error(owed, data, at, limit)
        if error is not None:
            fields["error_code"] = error
        state = self._state
        latency = state.now - owed.sent if owed.sent else 0
        state.connection.log(_RESPONSE, fields, PROTO, latency)

    def _error(self, owed: Owed, data: bytes, at: int, limit: int) -> int | None:
        """The first error code in a reply, 0 for none; None if it cannot be seen."""
        kind = (owed.key, owed.version)
        start = at + _HEADER.size
        known = self._errors.get(kind)
        if known is not None and data.startswith(known[0], start):
            head, error = known
            if start + len(head) <= limit:
                return error
        if (find := _error_finder(*kind)) is None:
            return None
        try:
            found = find(data, _body(owed, data, at, limit), limit)
        except Short:
            return None
        if found is None:
            return None
        error, end = found
        self._errors[kind] = (data[start:end], error)
        return error

    def _versions(self, owed: Owed, data: bytes, at: int, end: int, ops: list[int]) -> None:
        """Pass an ApiVersions reply, or one in its place with less in it."""
        body = at + _HEADER.size
        # A server that does not know the version answers in the oldest.
        refused = data[body : body + 2] == answers.UNSUPPORTED_VERSION.to_bytes(2, "big")
        layout = schema.response(owed.key, 0 if refused else owed.version)
        values = decode_whole(data[:end], layout, body)
        narrowed = [entry for entry in map(_narrowed, values["ApiKeys"]) if entry]
        if narrowed == values["ApiKeys"]:
            ops += (PASS, end - at)
            return
        reply = answers.frame(owed.key, owed.correlation, layout, {**values, "ApiKeys": narrowed})
        ops += (INJECT, self._state.connection.inject(True, reply), DROP, end - at)


def _wanted(owed: Owed, length: int) -> int:
    """How many bytes of a reply of `length` must be seen."""
    if owed.key not in _READ_WHOLE:
        return LOOK
    whole = length + 4
    if owed.key == roles.METADATA and owed.listing is None:
        learns = owed.version >= _FIRST_IDS and whole <= MAX_LEARNT
        return max(whole, LOOK + 1) if learns else LOOK
    if whole > MAX_SEEN:
        raise ParserError(f"a reply of {whole} bytes that must be read (limit {MAX_SEEN})")
    return max(whole, LOOK + 1)


_READ_WHOLE = frozenset((roles.METADATA, roles.API_VERSIONS, OWN_QUERY))
_FIRST_IDS = 10
"""The first version of Metadata that has topic ids."""


def _body(owed: Owed, data: bytes, at: int, limit: int) -> int:
    """Where the body begins of the reply at `at`."""
    at += _HEADER.size
    if owed.key == roles.API_VERSIONS:
        return at
    key = roles.METADATA if owed.key == OWN_QUERY else owed.key
    return skip_tags(data, at, limit) if schema.response(key, owed.version).flexible else at


def _narrowed(entry: Values) -> Values | None:
    """What we understand of the versions that a server has of one API."""
    key = entry["ApiKey"]
    if key not in schema.APIS:
        return None
    first, last = schema.APIS[key].versions
    if key == roles.SASL_HANDSHAKE:
        first = 1
    first, last = max(first, entry["MinVersion"]), min(last, entry["MaxVersion"])
    return {**entry, "MinVersion": first, "MaxVersion": last} if first <= last else None


def _begin_session(state: State, owed: Owed, data: bytes, at: int, limit: int) -> None:
    """Take down the session that a Fetch reply begins."""
    layout = schema.response(owed.key, owed.version)
    start = _body(owed, data, at, limit) + layout.offset("SessionId")
    session = int.from_bytes(data[start : start + 4], "big", signed=True)
    if session and start + 4 <= limit and owed.session is not None:
        state.begin_session(session, owed.session)


def _metadata(state: State, owed: Owed, data: bytes, at: int, end: int, ops: list[int]) -> None:
    """Learn topic ids from a Metadata reply, and pass it, or as much as may be seen."""
    layout = schema.response(roles.METADATA, owed.version)
    try:
        place, tail, topics = _topics(layout, data, _body(owed, data, at, end), end)
    except Short:
        raise ParserError("a Metadata reply that ends too early") from None
    for _, _, name, topic_id in topics:
        if name and topic_id != NO_ID:
            state.learn(topic_id, name)
    listing = owed.listing
    if listing is None:
        ops += (PASS, end - at)
        return
    kept = [topic[:2] for topic in topics if _may_see(state, listing, owed.version, topic[2])]
    if len(kept) == len(topics) and not listing.insert:
        ops += (PASS, end - at)
        return
    first = topics[0][0] if topics else tail
    count = length(len(kept) + listing.how_many, layout.flexible, 4)
    head = data[at + 4 : place] + count + listing.insert
    total = len(head) + sum(stop - start for start, stop in kept) + end - tail
    head = total.to_bytes(4, "big") + head
    ops += (INJECT, state.connection.inject(True, head), DROP, first - at)
    _pass_spans([*kept, (tail, end)], first, ops)


def _pass_spans(spans: list[tuple[int, int]], at: int, ops: list[int]) -> None:
    """Pass the ascending `spans` and drop what is between them, from `at` on."""
    passing = 0
    for start, stop in spans:
        if start > at:
            if passing:
                ops += (PASS, passing)
                passing = 0
            ops += (DROP, start - at)
        passing += stop - start
        at = stop
    if passing:
        ops += (PASS, passing)


def _may_see(state: State, listing: Listing, version: int, name: bytes) -> bool:
    if listing.client is None:
        return False
    grant = state.grants[roles.METADATA, version, listing.client]
    return grant.any or grant.topic(name)


Topic = tuple[int, int, bytes, bytes]
"""Start, end, name and id of a topic in a Metadata reply."""


def _topics(layout: Layout, data: bytes, at: int, end: int) -> tuple[int, int, list[Topic]]:
    """Where the count of topics stands; where the last ends; and the topics."""
    for step in _before_topics(layout):
        at = step(data, at, end, [], [])
    inner = layout["Topics"].layout
    assert inner is not None, "topics are structs"
    skip, flexible, has_id = skipper(inner), layout.flexible, "TopicId" in inner
    place = at
    count, at = length_at(data, at, end, flexible, 4)
    topics = []
    for _ in range(count):
        # An error code, then the name, then the id.
        name_length, name = length_at(data, at + 2, end, flexible, 2)
        behind = name + max(name_length, 0)
        topic_id = data[behind : behind + 16] if has_id else NO_ID
        stop = skip(data, at, end, [], [])
        if stop > end:
            raise Short(stop)
        topics.append((at, stop, data[name:behind], topic_id))
        at = stop
    return place, at, topics


@cache
def _before_topics(layout: Layout) -> tuple[Step, ...]:
    names = [item.name for item in layout.items]
    return tuple(skip_item(item, layout.flexible) for item in layout.items[: names.index("Topics")])


@cache
def _error_finder(key: int, version: int) -> FindError | None:
    return _finder(schema.response(key, version))


def _finder(layout: Layout) -> FindError | None:
    """Finds the first error code: of the struct, or of the first of a list in it."""
    steps: list[tuple[Step | None, FindError | None]] = []
    for item in layout.items:
        if item.name in _ERRORS:
            steps.append((None, _int16))
            break
        inside = _finder(item.layout) if item.array and item.layout is not None else None
        steps.append((skip_item(item, layout.flexible), inside))
    if not any(find for _, find in steps):
        return None
    flexible = layout.flexible

    def find(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
        for skip, inside in steps:
            if inside is not None:
                if skip is None:
                    return inside(data, at, limit)
                count, first = length_at(data, at, limit, flexible, 4)
                if count > 0:
                    return inside(data, first, limit)
            assert skip is not None, "only the last step is an error code"
            at = skip(data, at, limit, [], [])
        return None

    return find


def _int16(data: bytes, at: int, limit: int) -> tuple[int, int]:
    if at + 2 > limit:
        raise Short(at + 2)
    return int.from_bytes(data[at : at + 2], "big", signed=True), at + 2
