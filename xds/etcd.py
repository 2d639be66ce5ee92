"""The store of identity numbers that several nodes share: etcd.

::

    PREFIX/id/NUMBER            the labels          for good, until nobody uses it
    PREFIX/labels/LABELS        the number          the other way round
    PREFIX/use/NUMBER/NODE      -                   as long as the node's lease lives

A number and its labels are written in one transaction, on the condition that neither
is there: so two nodes that race get the same number for the same labels, and no number
is ever that of two label sets.  A number that no node has used for a while is taken
out, on the condition that still nobody does.

A node that was cut off longer than its lease says again what it uses when it is back;
so does everybody when etcd has lost its data, and the numbers are the old ones.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from proxylib.errors import ConfigError
from xds.etcd_client import TLS, EtcdClient, EtcdError, after
from xds.identity import CLUSTER, RELEASE_DELAY, Scope, parse_labels
from xds.labels import LabelSet
from xds.proto import etcd_pb2 as etcd

log = logging.getLogger(__name__)

PREFIX = "proxylib/identities"

LEASE = 60
"""Seconds after which a node that does not answer uses nothing any more."""

USUAL = 1 << 16
"""Numbers below are given first: they are easier to read."""

MAX_TRIES = 100
"""Races that may be lost before the store is called unusable."""

_RETRY = 1.0
"""Seconds between attempts to reach etcd again."""

OnChange = Callable[[Mapping[int, LabelSet | None]], None]
"""``on_change(identities)``: labels of identities that others have made; None: it is gone."""

OnLost = Callable[[Collection[str]], None]
"""``on_lost(keys)``: label sets whose number others have now; they need another."""


class EtcdStore:
    """Identity numbers of a cluster, as one node of it sees them.

    endpoints: ``host:port`` of etcd's members. node: this node's name, which no other has.
    lease: seconds. delay: seconds that a number is kept after its last use.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        node: str,
        *,
        prefix: str = PREFIX,
        tls: TLS | None = None,
        lease: int = LEASE,
        delay: float = RELEASE_DELAY,
    ) -> None:
        if not node or "/" in node:
            raise ConfigError(f"{node!r} cannot be a node's name")
        self._client = EtcdClient(endpoints, tls)
        self._node, self._prefix, self._delay = node, prefix, delay
        self._on_change: OnChange = lambda identities: None
        self._on_lost: OnLost = lambda keys: None
        self._lease_seconds = lease
        self._lock = threading.Lock()
        self._lease = 0
        self._mine: dict[str, int] = {}
        self._known: dict[int, str] = {}
        self._users: dict[int, set[str]] = defaultdict(set)
        self._unused: dict[int, float] = {}
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"etcd-{run.__name__.strip('_')}", daemon=True)
            for run in (self._watch, self._keep)
        ]

    def start(self, on_change: OnChange, on_lost: OnLost) -> None:
        """Connect, and follow what others do. Raises EtcdError if etcd does not answer.

        Both are called on threads of the store's; on_change also before this returns.
        Of a ControlServer they are `identities_changed` and `renumber`.
        """
        self._on_change, self._on_lost = on_change, on_lost
        self._lease = self._client.grant(self._lease_seconds)
        self._take_up()
        for thread in self._threads:
            thread.start()

    # What Identities asks (see identity.Store).

    def numbers(self, scope: Scope, keys: Collection[str]) -> Mapping[str, int]:
        """The number of each of `keys`, in use by this node when this returns."""
        _check(scope)
        found: dict[str, int] = {}
        for key in keys:
            try:
                found[key] = self._number(key)
            except EtcdError:
                if self._client.renew(self._lease):
                    raise
                # The lease has ended, and nothing can be bound to it: a new one, at once.
                self._say_again()
                found[key] = self._number(key)
            with self._lock:
                self._mine[key] = found[key]
        return found

    def known(self, scope: Scope) -> Mapping[str, int]:
        """Nothing: what a run before this one used ends with its lease."""
        _check(scope)
        return {}

    def forget(self, scope: Scope, keys: Collection[str]) -> None:
        """Say that this node uses `keys` no more."""
        _check(scope)
        for key in keys:
            number = self._mine.get(key)
            if number is not None:
                self._client.txn(etcd.TxnRequest(success=[_delete(self._use(number))]))
                with self._lock:
                    del self._mine[key]

    def close(self) -> None:
        """Use nothing any more, and disconnect."""
        self._stopped.set()
        self._client.end_watch()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)
        try:
            if self._lease:
                self._client.revoke(self._lease)
        except EtcdError as error:
            log.warning("the lease was not given back, and ends by itself: %s", error)
        self._client.close()

    def _number(self, key: str) -> int:
        for _ in range(MAX_TRIES):
            candidate = self._candidate()
            made = self._client.txn(
                etcd.TxnRequest(
                    compare=[_absent(self._labels(key)), _absent(self._id(candidate))],
                    success=self._puts(key, candidate),
                    failure=[_range(self._labels(key))],
                )
            )
            if made.succeeded:
                return candidate
            kvs = made.responses[0].response_range.kvs
            if kvs:
                number = _parse(kvs[0].value)
                if number is None:
                    raise EtcdError(f"etcd: {kvs[0].key!r} is not a number")
                if self._claim(key, number):
                    return number
            # Another node took the candidate, or took the number out: once more.
        raise EtcdError(f"etcd: no number for {key!r} after {MAX_TRIES} races")

    def _candidate(self) -> int:
        with self._lock:
            for last in (USUAL, CLUSTER.last):
                for _ in range(64):
                    number = random.randint(CLUSTER.first, last)
                    if number not in self._known:
                        return number
            for number in range(CLUSTER.first, CLUSTER.last + 1):
                if number not in self._known:
                    return number
        raise ConfigError(f"no identity is left: all {CLUSTER.last - CLUSTER.first + 1} are in use")

    def _claim(self, key: str, number: int) -> bool:
        """Say that this node uses a number, on the condition that it is that of `key`."""
        request = etcd.TxnRequest(
            compare=[_equal(self._labels(key), str(number).encode())],
            success=[_put(self._use(number), b"", self._lease)],
        )
        return self._client.txn(request).succeeded

    def _puts(self, key: str, number: int) -> list[etcd.RequestOp]:
        return [
            _put(self._id(number), key.encode()),
            _put(self._labels(key), str(number).encode()),
            _put(self._use(number), b"", self._lease),
        ]

    # What others do.

    def _watch(self) -> None:
        revision = self._revision
        while not self._stopped.is_set():
            try:
                for response in self._client.watch(self._key(""), revision + 1):
                    revision = response.header.revision
                    self._tell(self._follow(response.events))
            except EtcdError as error:
                if not self._stopped.is_set():
                    log.warning("%s", error)
                    revision = self._reconnect(revision)

    def _reconnect(self, revision: int) -> int:
        while not self._stopped.wait(_RETRY):
            try:
                self._take_up()
            except EtcdError as error:
                log.warning("%s", error)
            else:
                return self._revision
        return revision

    def _take_up(self) -> None:
        """Read everything, as if nothing had been known."""
        found = self._client.range(self._key(""))
        with self._lock:
            before, self._known = self._known, {}
            self._users.clear()
        events = [etcd.Event(kv=kv) for kv in found.kvs]
        came = self._follow(events)
        self._revision = found.header.revision
        gone: dict[int, LabelSet | None] = {n: None for n in before if n not in self._known}
        self._tell(gone | {n: labels for n, labels in came.items() if before.get(n) != str(labels)})

    def _follow(self, events: Iterable[etcd.Event]) -> dict[int, LabelSet | None]:
        """Take up what happened to keys; the identities that this is about."""
        changed: dict[int, LabelSet | None] = {}
        for event in events:
            kind, _, rest = event.kv.key.decode("utf-8", "replace")[
                len(self._prefix) + 1 :
            ].partition("/")
            put = event.type == etcd.Event.PUT
            with self._lock:
                if kind == "use":
                    number, _, node = rest.partition("/")
                    self._follow_use(_parse(number.encode()), node, put)
                elif kind == "id" and (identity := _parse(rest.encode())) is not None:
                    text = event.kv.value.decode("utf-8", "replace")
                    labels = _labels(text) if put else None
                    self._known.pop(identity, None)
                    if labels is not None:
                        self._known[identity] = text
                    changed[identity] = labels
        return changed

    def _follow_use(self, number: int | None, node: str, put: bool) -> None:
        if number is not None:
            (self._users[number].add if put else self._users[number].discard)(node)

    def _tell(self, changed: Mapping[int, LabelSet | None]) -> None:
        if not changed:
            return
        try:
            self._on_change(changed)
        except Exception:
            # Whatever the caller cannot take up, the next identities must be followed.
            log.exception("identities of other nodes were not taken up")

    def _tell_lost(self, lost: Collection[str]) -> None:
        try:
            self._on_lost(lost)
        except Exception:
            log.exception("label sets without a number were not taken up")

    # The lease, and numbers that nobody uses.

    def _keep(self) -> None:
        while not self._stopped.wait(self._lease_seconds / 4):
            try:
                if not self._client.renew(self._lease):
                    self._say_again()
                self.collect()
            except EtcdError as error:
                log.warning("%s", error)

    def _say_again(self) -> None:
        """Claim what this node uses under a new lease: the old one has ended."""
        lease = self._client.grant(self._lease_seconds)
        with self._lock:
            mine = dict(self._mine)
            self._lease = lease
        lost = [key for key, number in mine.items() if not self._claim_again(key, number)]
        if lost:
            with self._lock:
                for key in lost:
                    self._mine.pop(key, None)
            log.error("the numbers of %s are others' now", ", ".join(lost))
            self._tell_lost(lost)

    def _claim_again(self, key: str, number: int) -> bool:
        if self._claim(key, number):
            return True
        # It was taken out, or etcd has lost it: the number is ours if nobody has it.
        request = etcd.TxnRequest(
            compare=[_absent(self._labels(key)), _absent(self._id(number))],
            success=self._puts(key, number),
        )
        return self._client.txn(request).succeeded or self._claim(key, number)

    def collect(self) -> None:
        """Take out the numbers that no node has used for the delay. Raises EtcdError."""
        now = time.monotonic()
        with self._lock:
            unused = [number for number in self._known if not self._users.get(number)]
            self._unused = {number: self._unused.get(number, now) for number in unused}
            old = [n for n, since in self._unused.items() if now - since >= self._delay]
            keys = {number: self._known[number] for number in old}
        for number, key in keys.items():
            users = self._use(number, "")
            self._client.txn(
                etcd.TxnRequest(
                    compare=[
                        _equal(self._labels(key), str(number).encode()),
                        _absent(users, after(users)),
                    ],
                    success=[_delete(self._id(number)), _delete(self._labels(key))],
                )
            )

    def _key(self, rest: str) -> bytes:
        return f"{self._prefix}/{rest}".encode()

    def _id(self, number: int) -> bytes:
        return self._key(f"id/{number}")

    def _labels(self, key: str) -> bytes:
        return self._key(f"labels/{key}")

    def _use(self, number: int, node: str | None = None) -> bytes:
        return self._key(f"use/{number}/{self._node if node is None else node}")


def _check(scope: Scope) -> None:
    if scope is not CLUSTER:
        raise ConfigError("identities of one node are not for etcd; give them a store of their own")


def _parse(text: bytes) -> int | None:
    """An identity's number; None for what somebody else has put there."""
    number = int(text) if text.isdigit() and len(text) < 10 else 0
    return number if CLUSTER.first <= number <= CLUSTER.last else None


def _labels(text: str) -> LabelSet | None:
    try:
        return parse_labels(text)
    except ValueError as error:
        log.warning("etcd: %r are no labels: %s", text[:200], error)
        return None


def _absent(key: bytes, range_end: bytes = b"") -> etcd.Compare:
    target = etcd.Compare.VERSION
    return etcd.Compare(key=key, range_end=range_end, target=target, version=0)


def _equal(key: bytes, value: bytes) -> etcd.Compare:
    return etcd.Compare(key=key, target=etcd.Compare.VALUE, value=value)


def _put(key: bytes, value: bytes, lease: int = 0) -> etcd.RequestOp:
    return etcd.RequestOp(request_put=etcd.PutRequest(key=key, value=value, lease=lease))


def _delete(key: bytes) -> etcd.RequestOp:
    return etcd.RequestOp(request_delete_range=etcd.DeleteRangeRequest(key=key))


def _range(key: bytes) -> etcd.RequestOp:
    return etcd.RequestOp(request_range=etcd.RangeRequest(key=key))
