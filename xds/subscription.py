"""One subscriber and one resource type, without I/O.

What it asked for, what it was sent, and what it made of that.  Both variants of
the protocol keep the same books: every response has a nonce; a request that
repeats it is the ACK, or the NACK if it has an error_detail.  What was sent is
not sent again until it changes.  That goes for what was refused too, and since a
refusal is one of a whole response, all of it is due again when a part changes.

xDS protocol: "ACK/NACK and resource type instance version", "How the client
specifies what resources to return", "Incremental xDS".
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from proxylib.errors import ProxylibError
from proxylib.proto import discovery_pb2 as discovery
from xds.world import Resource, Snapshot, version_of

MAX_REASON = 4096
"""Longest part of a NACK's reason that is kept, characters."""

MAX_NAMES = 16_384
"""Most resources of one type that a subscriber may name."""

MAX_NAME = 1024
"""Longest resource name that is taken from a subscriber, characters."""

MAX_OUTSTANDING = 16
"""Responses of one type that wait for an answer; then nothing more is sent before one."""

MAX_SHOWN = 32
"""Refused resources that a status names."""

WILDCARD = "*"

_WORD = re.compile(r"[\w./:=*-]+")


class StreamError(ProxylibError):
    """The peer does not speak the protocol; its stream ends with this text."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What one subscriber has of one type. Versions are 0 where there is none.

    `acked_version` is what is in force there: also after a NACK, whose `reason`
    stays until the subscriber accepts a version, with the names of the resources
    that it is about (none: the response as a whole).  `revision` is the newest
    one that is wholly in force.  `pending_since`: when the oldest response that is
    not answered was sent, in seconds since 1970; None if there is none.
    """

    node_id: str
    type_url: str
    sent_version: int = 0
    acked_version: int = 0
    nacked_version: int = 0
    reason: str = ""
    connected: bool = True
    refused: tuple[str, ...] = ()
    pending_since: float | None = None
    revision: int = 0
    incremental: bool = False

    def gone(self) -> StreamStatus:
        """The same, of a subscriber that has left."""
        return replace(self, connected=False, pending_since=None)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that was accepted or refused; reason is empty if it was accepted."""

    type_url: str
    version: int
    reason: str = ""
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """A serialized response, and what its updates make due again."""

    data: bytes
    refreshes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A response that waits for its answer: the names it speaks of, and which it brings."""

    version: int
    names: frozenset[str]
    brought: frozenset[str]
    at: float


@dataclass(frozen=True, slots=True)
class _Change:
    """What is due: resources that are new to the subscriber, and names that are gone."""

    changed: Mapping[str, Resource]
    removed: Set[str]
    missing: Set[str]
    withheld: bool


class Subscription(ABC):
    """What both variants share. Call `take` for requests, `respond` when woken.

    whole: an empty list of names means all; and in state of the world, responses
    hold everything.  clock: seconds since 1970.
    """

    incremental = False

    claims = False
    """True if it brought resources along from an earlier stream."""

    def __init__(self, type_url: str, *, whole: bool, clock: Callable[[], float]) -> None:
        self.type_url = type_url
        self.revision = 0
        self._whole = whole
        self._clock = clock
        self._wildcard = False
        self._named: set[str] = set()
        self._subscribed = False
        # What the subscriber was last sent, by name; None: that there is no such thing.
        self._has: dict[str, Resource | None] = {}
        self._outstanding: OrderedDict[str, _Sent] = OrderedDict()
        self._nonce = 0
        self._seen: Snapshot | None = None
        self._stale = False
        self._withheld = False
        self._owes_first = False
        self._refused: set[str] = set()
        self._sent_version = 0
        self._acked_version = 0
        self._nack = Answer(type_url, 0)

    # -- what the order of types asks ------------------------------------------------

    @property
    def answered(self) -> bool:
        """True if no response waits for its answer."""
        return not self._outstanding

    def in_force(self, snapshot: Snapshot) -> bool:
        """True if the subscriber has accepted all of `snapshot` that it wants."""
        if snapshot.version == 0:
            return self._seen is None
        return (
            snapshot is self._seen
            and not self._stale
            and not self._withheld
            and not self._outstanding
            and not self._refused
        )

    # -- sending -----------------------------------------------------------------------

    def respond(self, snapshot: Snapshot, *, may_remove: bool = True) -> Response | None:
        """The response that is due, if any; it counts as sent.

        may_remove: False keeps what is gone at the subscriber for now.
        """
        same = snapshot is self._seen and not self._stale
        if snapshot.version == 0 or (same and not (self._withheld and may_remove)):
            return None
        if len(self._outstanding) >= MAX_OUTSTANDING:
            return None
        first, self._owes_first = self._owes_first, False
        self._seen, self._stale = snapshot, False
        self._sent_version = snapshot.version
        change = self._change(snapshot, may_remove)
        self._withheld = change.withheld
        if not (first or change.changed or change.removed or change.missing):
            self._settle()
            return None
        self._nonce += 1
        names = change.changed.keys() | change.removed | change.missing
        brought = frozenset(change.changed)
        self._remember(_Sent(snapshot.version, frozenset(names), brought, self._clock()))
        refreshes = [
            entry
            for name, item in change.changed.items()
            if self._has.get(name) is not None
            for entry in item.refreshes
        ]
        self._has.update(change.changed)
        for name in change.removed | change.missing:
            if name in self._named:
                self._has[name] = None
            else:
                self._has.pop(name, None)
        return Response(self._encode(snapshot, change), tuple(refreshes))

    def refresh(self, name: str) -> None:
        """Make a resource due again, if it was sent, though it did not change."""
        if self._has.pop(name, None) is not None:
            self._stale = True

    def status(self, node_id: str) -> StreamStatus:
        """What the subscriber has."""
        oldest = next(iter(self._outstanding.values()), None)
        return StreamStatus(
            node_id,
            self.type_url,
            self._sent_version,
            self._acked_version,
            self._nack.version,
            self._nack.reason,
            refused=self._nack.refused,
            pending_since=oldest.at if oldest is not None else None,
            revision=self.revision,
            incremental=self.incremental,
        )

    def _change(self, snapshot: Snapshot, may_remove: bool) -> _Change:
        there = snapshot.resources
        if self._wildcard:
            wanted: Mapping[str, Resource] = there
        else:
            wanted = {name: there[name] for name in sorted(self._named) if name in there}
        changed = {
            name: item
            for name, item in wanted.items()
            if (had := self._has.get(name)) is None or had.version != item.version
        }
        gone = {n for n, had in self._has.items() if had is not None and n not in wanted}
        # What neither side has any more cannot stay refused.
        self._refused.intersection_update(wanted.keys() | gone | {WILDCARD})
        if not self._refused.isdisjoint(changed.keys() | gone):
            changed |= {name: wanted[name] for name in self._refused if name in wanted}
        missing = {n for n in self._named if n not in there and n not in self._has}
        removed = gone if may_remove else set[str]()
        return self._reportable(_Change(changed, removed, missing, bool(gone - removed)))

    def _reportable(self, change: _Change) -> _Change:
        """The part of `change` that this variant has words for."""
        return change

    @abstractmethod
    def _remember(self, sent: _Sent) -> None:
        """Wait for the answer to the response with the newest nonce."""

    @abstractmethod
    def _encode(self, snapshot: Snapshot, change: _Change) -> bytes:
        """The serialized response."""

    # -- receiving -----------------------------------------------------------------------

    @abstractmethod
    def take(self, request: Any) -> Answer | None:
        """Take a request of this variant; the answer that it gives, if it gives one.

        Raises StreamError if it asks for too much.
        """

    def _subscribe(self, names: Iterable[str]) -> None:
        for name in names:
            if len(name) > MAX_NAME:
                raise StreamError(f"a resource name is longer than {MAX_NAME} characters")
            if name == WILDCARD:
                self._wildcard = True
            else:
                self._named.add(name)
            if len(self._named) > MAX_NAMES:
                raise StreamError(f"more than {MAX_NAMES} resources of one type are named")
        self._stale = True

    def _forget(self, names: Collection[str]) -> None:
        for name in names:
            self._has.pop(name, None)
        if not self._refused.isdisjoint(names):
            # What was refused together with them may be good without them.
            self._refused.difference_update(names)
            for name in self._refused:
                self._has.pop(name, None)
        self._stale = True

    def _answer(self, nonce: str, error: str | None) -> Answer | None:
        """Book the answer to the response with `nonce`; None if none waits for it."""
        sent = self._outstanding.pop(nonce, None)
        if sent is None:
            return None
        if error is None:
            self._refused -= sent.names | {WILDCARD}
            answer = Answer(self.type_url, sent.version)
            if not self._refused:
                self._nack = Answer(self.type_url, 0)
        else:
            self._refused |= sent.brought or {WILDCARD}
            reason = error[:MAX_REASON] or "no reason given"
            answer = Answer(self.type_url, sent.version, reason, _about(sent.brought, reason))
            self._nack = answer
        self._settle()
        return answer

    def _settle(self) -> None:
        if not self._outstanding and not self._refused:
            self._acked_version = self._sent_version
            self._nack = Answer(self.type_url, 0)


class StateOfTheWorld(Subscription):
    """The variant with DiscoveryRequest and DiscoveryResponse."""

    def __init__(self, type_url: str, *, whole: bool, clock: Callable[[], float]) -> None:
        super().__init__(type_url, whole=whole, clock=clock)
        self._explicit = False
        self._claimed = ""

    def take(self, request: discovery.DiscoveryRequest) -> Answer | None:
        first, self._subscribed = not self._subscribed, True
        nonce = str(self._nonce) if self._nonce else ""
        if not first and request.response_nonce != nonce:
            return None  # What it says is superseded; the answer to the latest says it again.
        self._ask(set(request.resource_names))
        if first:
            # Whatever nonce it has is from another stream.
            self._owes_first = self._whole
            self._claimed = request.version_info
            return None
        error = request.error_detail.message if request.HasField("error_detail") else None
        return self._answer(request.response_nonce, error)

    def _ask(self, names: set[str]) -> None:
        self._explicit = self._explicit or bool(names)
        wildcard = WILDCARD in names or (self._whole and not self._explicit)
        names.discard(WILDCARD)
        if names == self._named and wildcard == self._wildcard:
            return
        new, self._named, self._wildcard = names - self._named, set(), wildcard
        self._subscribe(names)
        kept = names if not wildcard else names | (self._has.keys() - new)
        self._forget([name for name in self._has if name not in kept or name in new])
        self._owes_first = self._whole and (self._owes_first or bool(new) or wildcard)

    def respond(self, snapshot: Snapshot, *, may_remove: bool = True) -> Response | None:
        if self._claimed and snapshot.version:
            # Only where all is wanted can we know that it wants nothing else than it had.
            everything = self._whole and self._wildcard and not self._named
            if everything and self._claimed == snapshot.content_version:
                self._has = dict(snapshot.resources)
                self._owes_first = False
            self._claimed = ""
        return super().respond(snapshot, may_remove=may_remove)

    def _reportable(self, change: _Change) -> _Change:
        if self._whole:
            return change
        # There is no word for what is gone; it is due again should it come back.
        self._forget_removed(change.removed)
        return replace(change, removed=frozenset(), missing=frozenset())

    def _forget_removed(self, names: Set[str]) -> None:
        for name in names:
            self._has.pop(name, None)
            self._refused.discard(name)

    def _remember(self, sent: _Sent) -> None:
        # An older nonce is stale as soon as a newer one is out.
        oldest = next(iter(self._outstanding.values()), sent)
        brought = sent.brought
        if self._whole and self._seen is not None:
            brought = frozenset(self._seen.resources)
        self._outstanding.clear()
        self._outstanding[str(self._nonce)] = replace(sent, brought=brought, at=oldest.at)

    def _encode(self, snapshot: Snapshot, change: _Change) -> bytes:
        version = snapshot.content_version
        if not self._whole:
            items = list(change.changed.values())
        elif self._wildcard and not change.withheld:
            items = list(snapshot.resources.values())
        else:
            items = [item for item in self._has.values() if item is not None]
            items.sort(key=_order(snapshot))
            version = version_of(items)
        response = discovery.DiscoveryResponse(
            version_info=version, type_url=self.type_url, nonce=str(self._nonce)
        )
        for item in items:
            response.resources.add(type_url=self.type_url, value=item.body)
        return response.SerializeToString()

    def _answer(self, nonce: str, error: str | None) -> Answer | None:
        if self._whole and error is None and nonce in self._outstanding:
            self._refused.clear()  # All of it was in this response.
        return super()._answer(nonce, error)


class Delta(Subscription):
    """The incremental variant: DeltaDiscoveryRequest and DeltaDiscoveryResponse."""

    incremental = True

    def take(self, request: discovery.DeltaDiscoveryRequest) -> Answer | None:
        first, self._subscribed = not self._subscribed, True
        more, fewer = request.resource_names_subscribe, request.resource_names_unsubscribe
        if more or fewer or first:
            self._unsubscribe(fewer)
            # It may have forgotten what it asks for: to be sent though it was before.
            self._forget(more)
            self._subscribe(more)
        if first:
            if not more and not fewer and self._whole:
                self._wildcard = True
            if len(request.initial_resource_versions) > MAX_NAMES:
                raise StreamError(f"more than {MAX_NAMES} initial resource versions")
            for name, version in request.initial_resource_versions.items():
                if self._wildcard or name in self._named:
                    self._has[name] = Resource(name, b"", version)
            self.claims = bool(self._has)
            self._owes_first = self._whole and not self._has
            return None
        error = request.error_detail.message if request.HasField("error_detail") else None
        return self._answer(request.response_nonce, error)

    def _unsubscribe(self, names: Collection[str]) -> None:
        for name in names:
            if name == WILDCARD:
                self._wildcard = False
                self._forget([had for had in self._has if had not in self._named])
            elif name in self._named:
                self._named.discard(name)
                self._forget([name])
                if self._wildcard:
                    # It cannot know whether the wildcard has it too: to be told, either way.
                    self._has[name] = Resource(name, b"", "")

    def _remember(self, sent: _Sent) -> None:
        self._outstanding[str(self._nonce)] = sent

    def _encode(self, snapshot: Snapshot, change: _Change) -> bytes:
        response = discovery.DeltaDiscoveryResponse(
            system_version_info=snapshot.content_version,
            type_url=self.type_url,
            nonce=str(self._nonce),
            removed_resources=sorted(change.removed | change.missing),
        )
        for item in change.changed.values():
            sent = response.resources.add(name=item.name, version=item.version)
            sent.resource.type_url = self.type_url
            sent.resource.value = item.body
        return response.SerializeToString()


def _order(snapshot: Snapshot) -> Callable[[Resource], int]:
    """A sort key: as in `snapshot`, and what is no longer there behind that."""
    places = {name: place for place, name in enumerate(snapshot.resources)}
    return lambda item: places.get(item.name, len(places))


def _about(names: Iterable[str], reason: str) -> tuple[str, ...]:
    """Which of `names` a reason speaks of. Envoy names the resource that it refuses."""
    words = {word.rstrip(".:") for word in _WORD.findall(reason)}
    return tuple(sorted(words.intersection(names))[:MAX_SHOWN])
