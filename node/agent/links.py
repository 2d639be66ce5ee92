"""What follows from a change on this machine: programs, Envoys, and who watches the links.

The repository says what there is to be, `NodeDatapath` and `Proxies` make it so.  What
happens to an endpoint's link (node/links/watcher.py) comes back from here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from bpf.errors import BpfError
from node.agent.acceleration import Acceleration
from node.agent.datapath import Health, NoDatapath, NodeDatapath
from node.agent.endpoints import EndpointError, NodeEndpoint
from node.agent.proxies import NODE, Proxies
from node.agent.redirects import NodeRedirects
from xds.ads.types import LISTENER
from xds.changes import Changes
from xds.compilation import NETWORK_POLICY
from xds.subscription import StreamStatus

if TYPE_CHECKING:
    from node.links.discovery import Attachment
    from node.links.watcher import LinkWatcher

log = logging.getLogger(__name__)

Moved = Callable[[int, "Attachment"], None]
Ended = Callable[[NodeEndpoint], None]


class NodeLinks:
    """Everything of this machine that is made the same as the agent's state.

    moved: told when an endpoint's link is called otherwise, or its namespace is elsewhere.
    ended: told when the link of a container's endpoint is gone. A container runtime may end
    one while there is no agent to hear of it; other endpoints wait for whoever added them.
    """

    def __init__(
        self,
        datapath: NodeDatapath,
        proxies: Proxies,
        acceleration: Acceleration,
        redirects: NodeRedirects,
        moved: Moved,
        ended: Ended,
    ) -> None:
        self.datapath, self.proxies, self.acceleration = datapath, proxies, acceleration
        self._redirects, self._moved, self._ended = redirects, moved, ended
        self._lock = threading.Lock()
        self._endpoints: Mapping[int, NodeEndpoint] = {}
        self._needed: Sequence[int] = ()
        self._missing: dict[int, Sequence[str]] = {}
        self._watcher: LinkWatcher | None = None

    def sync(
        self,
        changes: Changes | None = None,
        endpoints: Mapping[int, NodeEndpoint] | None = None,
    ) -> None:
        """Take a change up. Raises nothing."""
        with self._lock:
            before = self._endpoints
            if endpoints is not None:
                self._endpoints = endpoints
            epoch = self.datapath.epoch
            if endpoints is None:
                self.datapath.sync(changes)
            else:
                self.datapath.sync(changes, endpoints, self._gone_already(before, endpoints))
                self._watch(before, endpoints)
            self._settle_others(epoch)

    def end_others(self) -> None:
        """End the Envoys of endpoints that went while no agent ran."""
        self.proxies.end_others(self._sidecars())

    def find(
        self, *, netns: str, pid: int, interface: str, inner: str, addresses: Sequence[str]
    ) -> Attachment:
        """The link of an endpoint that is to be added (node/links/discovery.py).

        Raises EndpointError for what cannot be one, NoDatapath where there can be none.
        """
        from node.links.discovery import discover
        from node.links.namespaces import LinkError

        self.datapath.check()
        try:
            found = discover(
                netns=netns, pid=pid, interface=interface, inner=inner, addresses=addresses
            )
        except LinkError as error:
            raise EndpointError(str(error)) from error
        # Not before there is an endpoint: this is what changes the machine.
        self.datapath.require()
        return found

    def accelerate(self) -> None:
        """Have acceleration ready, for an endpoint that is attached.

        Raises NoDatapath where it would do harm, and says why.
        """
        if self.datapath.datapath is None:
            raise NoDatapath(self.datapath.unavailable or "sockmap needs an interface")
        try:
            self.acceleration.check()
        except BpfError as error:
            raise NoDatapath(f"sockmap cannot be had here: {error}") from error

    def tick(self) -> None:
        """What is to be done now and then."""
        with self._lock:
            epoch = self.datapath.epoch
            self.datapath.tick()
            if self._watcher is None and self.datapath.attached():
                # It could not be started before, or nothing could be attached.
                self._watch({}, self._endpoints)
            self._settle_others(epoch)
        self.datapath.expire()

    def pending(self, streams: Collection[StreamStatus]) -> Mapping[str, str]:
        """What is not yet as it should be, and why. streams: those that are connected."""
        found = {f"endpoint {n}": reason for n, reason in self.datapath.pending().items()}
        found |= {
            self.proxies.node_id(n): problem for n, problem in self.proxies.problems().items()
        }
        asking = {s.node_id for s in streams if s.type_url == LISTENER}
        wanted = {self.proxies.node_id(number) for number in self._needed}
        found |= dict.fromkeys(wanted - asking - found.keys(), "its Envoy is starting")
        # The libraries in them subscribe when they get their first listener, and have one name.
        judging = sum(s.type_url == NETWORK_POLICY for s in streams)
        if wanted <= asking and judging < len(wanted):
            found[self.proxies.node_id(NODE)] = "its parsers have no policy yet"
        return found

    @property
    def watching(self) -> bool:
        """False if nobody hears any more what happens to links, which is a fault of ours."""
        return self._watcher is None or self._watcher.working

    def health(self, endpoint: NodeEndpoint) -> Health:
        """How it is with an endpoint; also waiting-for-proxy, until its Envoy serves."""
        found = self.datapath.health(endpoint.id)
        missing = self._missing.get(endpoint.id)
        if found.state == "ready" and missing and endpoint.attachment is not None:
            inner = endpoint.attachment.inner
            return found._replace(
                state="not-ready", reason=f"{inner} does not have {', '.join(missing)} any more"
            )
        if found.state != "ready" or endpoint.id not in self.datapath.attached():
            return found
        number = endpoint.id if endpoint.mode == "sidecar" else NODE
        if not self.proxies.enabled or not self._redirects.of(endpoint.id):
            return found
        status = self.proxies.statuses().get(number)
        if status is not None and status.pid:
            return found
        reason = self.proxies.problems().get(number) or (status.last_error if status else "")
        return found._replace(state="waiting-for-proxy", reason=reason or "its Envoy is starting")

    def close(self) -> None:
        """Let go; programs, maps and Envoys stay in force."""
        if self._watcher is not None:
            self._watcher.__exit__(None, None, None)
        self.proxies.close()
        self.acceleration.close()
        self.datapath.close()

    def _settle_others(self, epoch: int) -> None:
        """What goes by the endpoints that are attached now. epoch: of before."""
        attached = self.datapath.attached()
        self._settle_proxies(attached)
        if self.datapath.datapath is None:
            return  # What is pinned is not ours, or nobody's.
        asking = {n: e for n in attached if (e := self._endpoints.get(n)) and e.sockmap}
        self.acceleration.settle(asking)
        if self.datapath.epoch != epoch:
            self.acceleration.bump()

    def _settle_proxies(self, attached: Collection[int]) -> None:
        sidecars = self._sidecars()
        needed: dict[int, bool] = {}
        # Those of an agent before us may be sidecars': that is known when endpoints are told.
        for number in filter(self._endpoints.__contains__, attached):
            place = number if number in sidecars else NODE
            needed[place] = needed.get(place, False) or bool(self._redirects.of(number))
        self._needed = [number for number, now in needed.items() if now and self.proxies.enabled]
        if needed or self.proxies.wanted():
            self.proxies.settle(needed, sidecars)

    def _sidecars(self) -> Mapping[int, NodeEndpoint]:
        return {
            number: endpoint
            for number, endpoint in self._endpoints.items()
            if endpoint.mode == "sidecar" and self.datapath.health(number).state != "disconnected"
        }

    def _watch(self, before: Mapping[int, NodeEndpoint], after: Mapping[int, NodeEndpoint]) -> None:
        changed = [n for n in before.keys() | after.keys() if before.get(n) is not after.get(n)]
        wanted = {
            n: e.attachment for n in changed if (e := after.get(n)) and e.attachment is not None
        }
        if wanted and self._watcher is None and not self.datapath.unavailable:
            self._watcher = self._start_watching()
        if self._watcher is None:
            return
        for number in changed:
            old = before.get(number)
            if number not in wanted:
                self._watcher.forget(number)
                self._missing.pop(number, None)
            elif old is None or old.attachment != wanted[number]:
                self._watcher.watch(number, wanted[number])

    def _gone_already(
        self, before: Mapping[int, NodeEndpoint], after: Mapping[int, NodeEndpoint]
    ) -> Mapping[int, str]:
        """Of the endpoints that are new to us, those whose link is gone, and why.

        What is on the disk may be of before a boot: its interface's number is another's now.
        """
        new = {n: a for n, e in after.items() if n not in before and (a := e.attachment)}
        found: dict[int, str] = {}
        if new and not self.datapath.unavailable:
            from node.links.discovery import Gone, refresh
            from node.links.namespaces import LinkError

            for number, attachment in new.items():
                try:
                    refresh(attachment)
                except Gone as gone:
                    found[number] = str(gone)
                except LinkError as error:
                    log.error("endpoint %d: %s", number, error)
        return found

    def _start_watching(self) -> LinkWatcher | None:
        from node.links.namespaces import LinkError
        from node.links.watcher import LinkWatcher

        try:
            return LinkWatcher(self._gone, self._moved, self._addresses).__enter__()
        except LinkError as error:
            log.error("%s", error)
            return None

    def _gone(self, number: int, reason: str) -> None:
        with self._lock:
            endpoint = self._endpoints.get(number)
            epoch = self.datapath.epoch
            self.datapath.disconnected(number, reason)
            self._settle_others(epoch)
        if endpoint is not None and "cni-attachment-id" in endpoint.external:
            self._ended(endpoint)

    def _addresses(self, number: int, missing: Sequence[str]) -> None:
        with self._lock:
            if number in self._endpoints:
                self._missing[number] = missing
