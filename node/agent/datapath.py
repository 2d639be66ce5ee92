"""The endpoints' programs and maps, made the same as what the engine says now.

A change says only what may be another (`sync`); what is written is what the engine has
when it is written.  So what cannot be done is noted, its endpoint is closed, and
the next try needs to know nothing of the changes in between.

Nothing of it touches the machine before the first endpoint that has an interface.  And
nothing is taken away when the agent ends: `close` lets go, and what is in force stays in
force until the next agent has made it the same again.

Order within one change.  Policies are written before identities of addresses: what an
address is then judged by is there already.  Only where an identity is denied by itself
that is not enough: an address that is about to get another identity could pass by what
both the old and the new state forbid.  Such an endpoint takes no new connection for
these milliseconds; running ones are judged again when the change is whole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from bpf.errors import BpfError, IpcacheFull
from node.agent.endpoints import NodeEndpoint
from node.agent.entries import Listening, Translated, translate
from node.agent.prefixes import Prefixes
from node.agent.redirects import Kind, NodeRedirects
from proxylib.errors import ConfigError
from proxylib.proto import npds_pb2 as npds
from xds.changes import Changes
from xds.engine import Engine
from xds.mapstate import ANY_IDENTITY

if TYPE_CHECKING:
    from bpf.datapath import Datapath, Link

RETRY, MAX_RETRY = 2.0, 60.0
"""Seconds until what could not be done is tried again: doubled each time, up to a minute."""

LOOK, LOOK_SHARE, MAX_LOOK = 3.0, 0.05, 15.0
"""Seconds between looks for what others have taken away: more, where looks would take more than
this part of the time, and at most so many."""

EXPIRE = 30.0
"""Seconds between looks for connections that have expired; the programs do not need them."""

MAX_SHOWN = 20
"""Endpoints that a warning names."""

log = logging.getLogger(__name__)

Opener = Callable[[], "Datapath"]
Addresses = Callable[[], frozenset[str]]


class NoDatapath(ConfigError):
    """Endpoints cannot have an interface here; the text says why, and what would do."""


class Health(NamedTuple):
    """How it is with an endpoint.

    state: ready, not-ready, or disconnected (its interface is gone); reason: why it is
    not ready. closed: what nobody can judge of its policy, and why.
    """

    state: str = "ready"
    reason: str = ""
    closed: tuple[str, ...] = ()


READY = Health()


class NodeDatapath:
    """Keeps the programs of one node. Safe for threads.

    opener: opens the data path; raises BpfError. unavailable: why there is none, if that
    is known from the start. addresses: those of the node itself.
    """

    def __init__(
        self,
        engine: Engine,
        redirects: NodeRedirects,
        opener: Opener,
        *,
        unavailable: str = "",
        addresses: Addresses = frozenset,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._redirects = engine, redirects
        self._opener, self._unavailable = opener, unavailable
        self._own_addresses, self._clock = addresses, clock
        self._lock = threading.RLock()
        self._datapath: Datapath | None = None
        self._problem = ""
        self._endpoints: Mapping[int, NodeEndpoint] = {}
        self._listening = Listening({}, {})
        # What may be another than what is in force.
        self._told = False
        self._dirty: set[int] = set()
        self._stale: set[int] = set()
        self._retry_at = self._expire_at = self._look_at = 0.0
        self._retry = RETRY
        self._failures = self._repairs = 0
        # What is in force.
        self._health: dict[int, Health] = {}
        self._links: dict[int, Link] = {}
        self._taken_over: Mapping[int, Link] = {}
        self._placed: set[int] = set()
        """Whose programs are known to be in their places: not what an agent before us says."""
        self._lost: dict[int, str] = {}
        """What others have taken from those that are not, in words."""
        self._policies: dict[int, Translated] = {}
        self._gone: dict[int, str] = {}
        self._identities = Prefixes()
        self._unidentified = self._unrouted = ""

    # What others ask.

    @property
    def datapath(self) -> Datapath | None:
        """What is open, if anything."""
        return self._datapath

    @property
    def unavailable(self) -> str:
        """Why no endpoint can have an interface; empty if one can, or that is not known yet."""
        return self._unavailable or self._problem

    @property
    def epoch(self) -> int:
        """Is another one after every change of what connections are judged by."""
        return 0 if self._datapath is None else self._datapath.epoch

    @property
    def failures(self) -> int:
        """How often something could not be done."""
        return self._failures

    @property
    def repairs(self) -> int:
        """How often something was put back that others have taken away."""
        return self._repairs

    def health(self, number: int) -> Health:
        """How it is with an endpoint."""
        return self._health.get(number, READY)

    def pending(self) -> Mapping[int, str]:
        """Endpoints whose policy is not in force as it should be, and why."""
        with self._lock:
            return {
                number: health.reason
                for number, health in self._health.items()
                if health.state == "not-ready"
            }

    def attached(self) -> Collection[int]:
        """The endpoints whose packets pass programs of ours."""
        return tuple(self._links)

    # What others do.

    def check(self) -> None:
        """Raises NoDatapath if it is plain that there cannot be one; does nothing else."""
        if self._unavailable:
            raise NoDatapath(self._unavailable)

    def require(self) -> None:
        """Have a data path. Raises NoDatapath."""
        self.check()
        with self._lock:
            try:
                self._open()
            except BpfError as error:
                raise NoDatapath(str(error)) from error

    def sync(
        self,
        changes: Changes | None = None,
        endpoints: Mapping[int, NodeEndpoint] | None = None,
        gone: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Take up what has changed in the engine, in the endpoints, and of redirects.

        gone: endpoints whose interface or namespace is not there (any more), and why. Raises
        nothing: what cannot be done is `pending`, and tried again.
        """
        with self._lock:
            if endpoints is not None:
                self._take(endpoints)
            for number, reason in gone.items():
                self._disconnect(number, reason)
            if changes is not None:
                self._dirty |= changes.maps | changes.endpoints | changes.removed
                self._stale |= changes.hosts
            listening = Listening(self._redirects.ports(), self._redirects.problems())
            if listening != self._listening:
                self._dirty |= self._redirects.users(_changed(self._listening, listening))
                self._listening = listening
            self._settle()

    def disconnected(self, number: int, reason: str) -> None:
        """An endpoint's interface or namespace is gone."""
        with self._lock:
            self._disconnect(number, reason)
            self._settle()

    def tick(self) -> None:
        """Try again what could not be done; look at the node's own addresses, and at its things."""
        with self._lock:
            if self._datapath is not None and self._told and self._clock() >= self._look_at:
                self._look(self._datapath)
            if self._clock() >= self._retry_at:
                self._try_again()

    def expire(self) -> None:
        """Now and then, forget connections that have expired. Holds nobody up."""
        datapath = self._datapath
        if datapath is not None and self._clock() >= self._expire_at:
            self._expire_at = self._clock() + EXPIRE
            datapath.expire()

    def close(self) -> None:
        """Let go; what is in force stays in force."""
        with self._lock:
            if self._datapath is not None:
                self._datapath.close()
                self._datapath = None

    # How.

    def _disconnect(self, number: int, reason: str) -> None:
        if number in self._endpoints and number not in self._gone:
            log.warning("endpoint %d: disconnected: %s", number, reason)
            self._gone[number] = reason
            self._dirty.add(number)

    def _try_again(self) -> None:
        failures = self._failures
        try:
            if self._datapath is not None:
                self._identities.set_own(self._own_addresses())
        except BpfError as error:
            self._count("the node's own addresses", str(error))
        self._settle()
        self._retry = RETRY if self._failures == failures else min(2 * self._retry, MAX_RETRY)
        self._retry_at = self._clock() + self._retry

    def _look(self, datapath: Datapath) -> None:
        """Put back what others have taken away."""
        began, dirty, unrouted = self._clock(), set[int](), ""
        try:
            if lacking := datapath.repair_node():
                self._repairs += 1
                log.warning("the node: somebody has changed %s: put back", ", ".join(lacking))
        except BpfError as error:
            unrouted = str(error)
            self._count("the node", unrouted)
        if unrouted != self._unrouted:
            self._unrouted = unrouted
            dirty |= self._policies.keys()
        try:
            lost = datapath.lacking()
        except BpfError as error:
            self._count("programs in their places", str(error))
            lost = {}
        # Those that were never placed, or could not be again, are tried without a look.
        for number in lost.keys() & self._placed:
            self._placed.discard(number)
            self._lost[number] = ", ".join(lost[number])
            dirty.add(number)
        now = self._clock()
        self._look_at = now + min(max(LOOK, (now - began) / LOOK_SHARE), MAX_LOOK)
        if dirty:
            self._dirty |= dirty
            self._settle()

    def _take(self, endpoints: Mapping[int, NodeEndpoint]) -> None:
        before, self._endpoints, self._told = self._endpoints, endpoints, True
        for number in before.keys() | endpoints.keys():
            old, new = before.get(number), endpoints.get(number)
            if old is not new:
                self._dirty.add(number)
                if old is None or new is None or old.attachment != new.attachment:
                    self._gone.pop(number, None)

    def _wanted(self) -> list[int]:
        return [n for n, e in self._endpoints.items() if e.attachment is not None]

    def _open(self) -> Datapath:
        """The data path; all there is to do with it is noted. Raises BpfError."""
        if self._datapath is None:
            try:
                own = self._own_addresses()
                self._datapath = self._opener()
            except BpfError as error:
                self._problem = str(error)
                raise
            self._problem = ""
            # Of an agent before us: those that are still wanted are attached again, which
            # takes nothing away; the others are to go.
            self._taken_over = self._datapath.attached()
            self._links = dict(self._taken_over)
            self._placed.clear()
            self._lost.clear()
            self._policies.clear()
            self._dirty |= {*self._wanted(), *self._links}
            self._identities = Prefixes(self._datapath.identities())
            self._identities.set_all(self._engine.addresses())
            self._identities.set_own(own)
            self._stale.clear()
        return self._datapath

    def _settle(self) -> None:
        """Do all that there is to do and can be done."""
        if not self._told:
            # What an agent before us has attached is not known to be unwanted.
            return
        wanted = self._wanted()
        if self._datapath is None and (not wanted or self._unavailable):
            self._health = {
                n: Health("not-ready", self._unavailable) for n in wanted if self._unavailable
            }
            self._dirty.clear()
            self._stale.clear()
            return
        try:
            datapath = self._open()
            self._tell_unknown()
            for identity in self._stale:
                self._identities.set(identity, self._prefixes_of(identity))
            self._stale.clear()
            dirty, self._dirty = self._dirty & {*wanted, *self._links, *self._health}, set()
            delta = self._identities.delta()
            if dirty or delta:
                with datapath.transaction():
                    self._write(datapath, dirty, delta)
        except BpfError as error:
            self._all_failed(wanted, str(error))
        except Exception as error:
            # A change that is in force elsewhere must not be taken back for a fault of ours here.
            log.exception("the data path: a fault of the agent's own")
            self._all_failed(wanted, f"a fault of the agent's own: {error!r}")

    def _tell_unknown(self) -> None:
        """Say whom an agent before us has judged and nobody judges any more."""
        found, self._taken_over = self._taken_over, {}
        unknown = [link for number, link in sorted(found.items()) if number not in self._endpoints]
        if unknown:
            shown = [_shown(link) for link in unknown[:MAX_SHOWN]]
            more = f", and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else ""
            log.warning(
                "%d endpoints of an earlier agent are not in this one's state and are detached; "
                "what goes to and from them passes unjudged until they are added again: %s%s",
                len(unknown),
                "; ".join(shown),
                more,
            )

    def _all_failed(self, wanted: Collection[int], reason: str) -> None:
        self._count("the data path", reason)
        self._dirty |= {*wanted}
        for number in wanted:
            self._health[number] = Health("not-ready", reason)

    def _write(
        self, datapath: Datapath, dirty: Collection[int], delta: Mapping[str, int | None]
    ) -> None:
        policies = dict(self._translated(dirty))
        held = set(self._to_hold(policies) if self._identities.tells_apart(delta) else ())
        for number in held:
            del self._policies[number]
            datapath.set_policy(number, None)
        for number in dirty:
            if number not in held:
                self._one(datapath, number, policies.get(number))
        self._identify(datapath, delta)
        for number in held:
            self._one(datapath, number, policies[number])

    def _to_hold(self, policies: Mapping[int, Translated]) -> Iterator[int]:
        """Endpoints with a policy in force that deny somebody by identity, before or after."""
        for number, policy in policies.items():
            before = self._policies.get(number)
            if before is not None and (before.denying or policy.denying):
                yield number

    def _translated(self, numbers: Iterable[int]) -> Iterator[tuple[int, Translated]]:
        for number in numbers:
            endpoint = self._endpoints.get(number)
            if endpoint is None or endpoint.attachment is None or number in self._gone:
                continue
            with suppress(KeyError):  # It goes in this moment; that will be told.
                state = self._engine.map_state(number)
                yield number, translate(state, self._redirects.of(number), self._listening)

    def _one(self, datapath: Datapath, number: int, policy: Translated | None) -> None:
        """Make one endpoint as it should be, or closed."""
        try:
            if policy is None:
                self._detach(datapath, number)
                self._let_go(number)
                return
            self._place(datapath, number)
            if self._unidentified and any(e.identity != ANY_IDENTITY for e in policy.entries):
                raise BpfError(self._unidentified)
            before = self._policies.get(number)
            if before is None or before.entries != policy.entries:
                datapath.set_policy(number, policy.entries)
            self._policies[number] = policy
            self._ready(number, policy)
        except BpfError as error:
            self._fail(datapath, number, str(error))

    def _place(self, datapath: Datapath, number: int) -> None:
        """Have an endpoint's programs where its link is, as what it is."""
        link, before = self._link(number), self._links.get(number)
        if (
            before is not None
            and number in self._placed
            and (before.ifindex, before.netns) == (link.ifindex, link.netns)
        ):
            if before != link:
                datapath.update(link)
        else:
            self._placed.discard(number)
            datapath.attach(link)
            self._placed.add(number)
            if lost := self._lost.pop(number, ""):
                self._repairs += 1
                log.warning("endpoint %d: somebody has changed %s: put back", number, lost)
        self._links[number] = link

    def _detach(self, datapath: Datapath, number: int) -> None:
        self._policies.pop(number, None)
        if number in self._links:
            datapath.detach(number)
            del self._links[number]
            self._placed.discard(number)
            self._lost.pop(number, None)

    def _let_go(self, number: int) -> None:
        if number in self._gone:
            self._health[number] = Health("disconnected", self._gone[number])
        else:
            self._health.pop(number, None)

    def _ready(self, number: int, policy: Translated) -> None:
        closed = tuple(policy.closed)
        if closed and self.health(number).closed != closed:
            log.warning("endpoint %d: closed, %s", number, "; ".join(closed))
        if self._unrouted and self._endpoints[number].mode != "sidecar":
            self._health[number] = Health("not-ready", self._unrouted, closed)
        else:
            self._health[number] = Health(closed=closed)

    def _fail(self, datapath: Datapath, number: int, reason: str) -> None:
        """Close an endpoint that cannot be as it should."""
        self._policies.pop(number, None)
        with suppress(BpfError):
            datapath.set_policy(number, None)
        self._dirty.add(number)
        self._count(f"endpoint {number}", reason)
        self._health[number] = Health("not-ready", reason)

    def _count(self, what: str, reason: str) -> None:
        self._failures += 1
        said = {health.reason for health in self._health.values()}
        if reason not in said:
            log.error("%s: %s", what, reason)

    def _link(self, number: int) -> Link:
        from bpf.datapath import Link

        endpoint = self._endpoints[number]
        attachment = endpoint.attachment
        assert attachment is not None
        inside = endpoint.mode == "sidecar"
        return Link(
            number=number,
            ifindex=attachment.inner_ifindex if inside else attachment.ifindex,
            ipv4=endpoint.address(4),
            ipv6=endpoint.address(6),
            identity=self._engine.policy(number).identity,
            netns=attachment.netns if inside else "",
        )

    def _prefixes_of(self, identity: int) -> set[str]:
        body = self._engine.hosts(identity)
        if body is None:
            return set()
        return set(npds.NetworkPolicyHosts.FromString(body).host_addresses)

    def _tell_identities(self, datapath: Datapath, part: Mapping[str, int | None]) -> None:
        try:
            datapath.set_identities(part)
        except IpcacheFull:
            # What there is no room for is closed there, said, and tried again with the next.
            self._failures += 1

    def _identify(self, datapath: Datapath, delta: Mapping[str, int | None]) -> None:
        """Write what addresses are; endpoints that depend on it are closed if that fails."""
        try:
            # What is new first: no address is the world's in between that was not before.
            for new in (True, False):
                part = {p: number for p, number in delta.items() if (number is not None) is new}
                if part:
                    self._tell_identities(datapath, part)
                    self._identities.written(part)
        except BpfError as error:
            self._count("identities of addresses", str(error))
            self._unidentified = str(error)
        else:
            if not self._unidentified:
                return
            self._unidentified = ""
        for number, policy in list(self._policies.items()):
            self._one(datapath, number, policy)
        if not self._unidentified:
            # Those that were closed for it are taken up again.
            self._dirty |= self.pending().keys() & {*self._wanted()}


def _changed(before: Listening, after: Listening) -> set[Kind]:
    """The kinds that are taken elsewhere now; also those whose one-pass listener is another."""
    kinds = {kind for item in (before, after) for kind in (*item.ports, *item.problems)}
    return {kind for kind in kinds if before.of(kind) != after.of(kind)}


def _shown(link: Link) -> str:
    addresses = ", ".join(filter(None, (link.ipv4, link.ipv6)))
    return f"endpoint {link.number} ({addresses or 'no address'})"
