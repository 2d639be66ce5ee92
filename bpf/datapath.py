"""The data path as its owner sees it: open it, attach endpoints, tell it policies and identities.

Everything is in the kernel and pinned: `close`, or the end of the process, changes nothing, and
the next one that opens it takes it over. One process at a time has it open. Methods may be
called from any thread; what is changed within one `transaction` raises the epoch once, at its
end, so that running connections are judged again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bpf import checks, compiler, conntrack, links, maps, places, schema
from bpf.counters import PacketCounter, read_counters
from bpf.errors import BpfError, IpcacheFull, PolicyMapFull
from bpf.events import Callback, EventReader
from bpf.ipcache import Ipcache
from bpf.links import Link
from bpf.memory import Memory
from bpf.netns import cookie, within
from bpf.policies import DENY_ALL, Policies, PolicyEntry
from bpf.programs import Programs
from bpf.schema import U32, U64, Config, Flags
from bpf.syscall import Map

__all__ = [
    "Datapath",
    "DatapathConfig",
    "Link",
    "PacketCounter",
    "PolicyEntry",
    "read_counters",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """What a data path is opened with.

    root: the folder of pins, on a bpffs; cache: of compiled programs; state: of what is put
    back by `cleanup`; sizes: of maps, by name; policy_max: entries that one policy may have;
    flags: what is told beside drops; source: the programs; netns: the path of the node's
    network namespace, empty: the process's own.
    """

    root: Path = checks.BPFFS / "proxylib"
    cache: Path = Path("/var/cache/proxylib/bpf")
    state: Path = Path("/var/lib/proxylib/bpf")
    sizes: Mapping[str, int] = field(default_factory=dict)
    policy_max: int = 16_384
    flags: Flags = Flags.NONE
    source: Path = compiler.PROGRAMS / "endpoint.c"
    netns: str = ""

    @property
    def memory(self) -> Path:
        """The file of what is put back."""
        return self.state / "restore.json"

    @property
    def folder(self) -> Path:
        """Where maps and programs of this layout and these sizes are pinned."""
        return maps.folder(self.root, self.sizes)


def lock(root: Path) -> int:
    """A descriptor that holds the folder of pins against other processes until it is closed.

    Raises `BpfError` if another one has it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BpfError(f"{root} cannot be made: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BpfError(
            f"{root} is in use by another agent: stop that one, or give another bpf-root"
        ) from error
    return fd


class Datapath:
    """See the module. Made by `open`."""

    def __init__(self, config: DatapathConfig, lock_fd: int, opened: dict[str, Map]) -> None:
        self.config = config
        self.failures: Counter[str] = Counter()
        """How often a map was full, by its name."""
        self.programs = Programs(config.source, config.cache, config.folder, opened)
        self._lock_fd = lock_fd
        self._maps = opened
        self._mutex = threading.RLock()
        self._depth = 0
        self._changed = False
        self._memory = Memory.load(config.memory)
        self._policies = Policies(opened["policy"], config.policy_max)
        self._ipcache = Ipcache(opened["ipcache"])
        self._links: dict[int, Link] = {}
        self._slots: dict[int, int] = {}
        self._reader: EventReader | None = None

    @classmethod
    def open(cls, config: DatapathConfig) -> Datapath:
        """The data path, as an earlier process left it or anew.

        Links that were attached stay so, with the programs that they have: attach each one
        again to give it this release's. Raises `BpfError`.
        """
        maps.check_sizes(config.sizes)
        checks.require(config.root)
        lock_fd = lock(config.root)
        try:
            made = cls(config, lock_fd, _open_maps(config))
        except BaseException:
            os.close(lock_fd)
            raise
        try:
            made._take_over()
        except BaseException:
            made.close()
            raise
        return made

    def _take_over(self) -> None:
        namespace = within(self.config.netns, cookie)
        told = self._config(Config.NETNS)
        if told not in (0, namespace):
            raise BpfError(
                f"{self.config.root} is of another network namespace: `proxylib agent cleanup` "
                "there, or give another bpf-root"
            )
        self._set_config(Config.NETNS, namespace)
        self.programs.open()
        places.prepare_node(self._memory, self.config.netns)
        for number, (link, slot) in links.read(self._maps, self._memory).items():
            self._links[number], self._slots[number] = link, slot
        self._policies.recover([(n, slot) for n, slot in self._slots.items() if slot != DENY_ALL])
        self._ipcache.recover()
        self.set_flags(self.config.flags)
        for other in maps.folders(self.config.root):
            if other != self.config.folder:
                self._take_connections(other)
                shutil.rmtree(other)

    def _take_connections(self, other: Path) -> None:
        """Those of maps of other sizes: their next packets are judged by what is told now."""
        if not maps.same_layout(other, self.config.folder):
            return
        try:
            found = maps.read_maps(other)
        except BpfError as error:
            log.warning("connections are not taken over: %s", error)
            return
        if "conntrack" in found and "config" in found:
            self._maps["conntrack"].set_many(found["conntrack"].items())
            self._set_config(Config.EPOCH, max(self.epoch, read_config(found, Config.EPOCH)) + 1)
        maps.close_maps(found)

    def close(self) -> None:
        """Let go; everything stays in force. Idempotent."""
        self.events(None)
        with self._mutex:
            self.programs.close()
            maps.close_maps(self._maps)
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes that raise the epoch together, at the end; other threads' wait meanwhile."""
        with self._mutex:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._changed:
                    self._changed = False
                    self._set_config(Config.EPOCH, self.epoch + 1)

    def bump(self) -> None:
        """Have every running connection judged again, at its next packet."""
        with self.transaction():
            self._changed = True

    @property
    def epoch(self) -> int:
        """Raised by every change of what connections are judged by."""
        return self._config(Config.EPOCH)

    def set_flags(self, flags: Flags) -> None:
        """What is told as events beside drops."""
        self._set_config(Config.FLAGS, flags)

    def attach(self, link: Link) -> None:
        """Judge the endpoint's packets from now on; one that is attached gets this link.

        An endpoint without a policy is closed. Raises `BpfError` (`InterfaceGone`,
        `NamespaceGone`); one that was not attached before is not then, and it can be tried
        again.
        """
        with self.transaction():
            self._check(link)
            place = link.netns or self.config.netns
            links.check_interface(link, place)
            before = self._links.get(link.number)
            if before is not None and (before.ifindex, before.netns) != (link.ifindex, link.netns):
                self._leave(before)
            self._put(link)
            try:
                places.prepare_link(self._memory, link, place)
                self._attach_programs(link, place)
            except BaseException:
                if before is None:
                    with suppress(BpfError):
                        self._leave(link)
                    links.erase(self._maps, self._links.pop(link.number))
                raise

    def update(self, link: Link) -> None:
        """Change the identity or the addresses of an endpoint that is attached."""
        with self.transaction():
            before = self._links.get(link.number)
            if before is None or (before.ifindex, before.netns) != (link.ifindex, link.netns):
                raise BpfError(f"endpoint {link.number} is not attached there: attach it")
            self._check(link)
            self._put(link)

    def detach(self, number: int) -> bool:
        """Take the programs away, and forget the endpoint; False if it is not attached.

        An interface or a namespace that is gone is no error.
        """
        with self.transaction():
            link = self._links.get(number)
            if link is None:
                return False
            self._leave(link)
            links.erase(self._maps, self._links.pop(number))
            self._policies.release(number, self._slots.pop(number, DENY_ALL))
            self._changed = True
            return True

    def attached(self) -> Mapping[int, Link]:
        """The endpoints that are attached, by number."""
        with self._mutex:
            return dict(self._links)

    def lacking(self) -> dict[int, list[str]]:
        """What others have taken from endpoints that are attached: `attach` puts it back.

        In words, by number; the interfaces that are gone are not among them. Raises `BpfError`.
        """
        places_of: dict[str, dict[Link, str]] = {}
        for link in self.attached().values():
            at = places_of.setdefault(link.netns or self.config.netns, {})
            at[link] = self._program_name(link)
        found: dict[int, list[str]] = {}
        for netns, told in places_of.items():
            found |= places.links_lack(told, netns)
        return found

    def repair_node(self) -> list[str]:
        """Put back what the node lacks of rules, routes and sysctls; in words, what that was.

        Raises `BpfError`.
        """
        lacking = places.node_lacks(self.config.netns)
        if lacking:
            with self._mutex:
                places.prepare_node(self._memory, self.config.netns)
        return lacking

    def set_policy(self, number: int, entries: Iterable[PolicyEntry] | None) -> None:
        """Put a policy in force, as a whole; None: nothing passes.

        It may be told before the endpoint is attached. Raises `PolicyMapFull`, and has then
        closed the endpoint.
        """
        with self.transaction():
            slot, failed = DENY_ALL, None
            if entries is not None:
                try:
                    slot = self._policies.write(number, entries)
                except PolicyMapFull as error:
                    self.failures["policy"] += 1
                    log.error("%s; it is closed", error)
                    failed = error
            before = self._slots.get(number, DENY_ALL)
            self._slots[number] = slot
            if slot != before:
                if number in self._links:
                    links.write_endpoint(self._maps, self._links[number], slot)
                self._policies.release(number, before)
                self._changed = True
            if failed is not None:
                raise failed

    def set_identities(self, told: Mapping[str, int | None]) -> None:
        """Give prefixes (or addresses) identities, or take (None) theirs.

        Raises `BpfError` for text that is none, and `IpcacheFull` when all that has room is
        in force and the rest closed.
        """
        with self.transaction():
            try:
                self._changed |= self._ipcache.change(told)
            except IpcacheFull as error:
                self._changed = True
                self.failures["ipcache"] += 1
                log.error("%s", error)
                raise

    def identities(self) -> dict[str, int]:
        """Each prefix' identity."""
        with self._mutex:
            return dict(self._ipcache.items())

    def events(self, callback: Callback | None) -> None:
        """Give events to `callback` from a thread of their own; None: to nobody any more."""
        with self._mutex:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if callback is not None:
            self._reader = EventReader(self._maps["events"], callback)

    @property
    def lost(self) -> int:
        """Events that found the ring buffer full."""
        return sum(one.packets for one in self._counted() if one.reason == schema.EVENTS_LOST)

    def counters(self) -> list[PacketCounter]:
        """Packets by endpoint, direction and what became of them."""
        return [one for one in self._counted() if one.reason != schema.EVENTS_LOST]

    def _counted(self) -> Iterator[PacketCounter]:
        return read_counters(self._maps)

    def conntrack(self) -> list[conntrack.Connection]:
        """The connections of all endpoints."""
        return list(conntrack.connections(self._maps["conntrack"]))

    def expire(self) -> int:
        """Delete connections that have expired; how many. To be called now and then."""
        return conntrack.expire(self._maps["conntrack"])

    def pressure(self) -> dict[str, float]:
        """How full each map is: 1 is full."""
        with self._mutex:
            known = {"policy": self._policies.entries, "ipcache": self._ipcache.entries}
        return maps.pressure(self._maps, known)

    def _config(self, slot: Config) -> int:
        return read_config(self._maps, slot)

    def _set_config(self, slot: Config, value: int) -> None:
        self._maps["config"].set(U32.pack(slot), U64.pack(value))

    def _check(self, link: Link) -> None:
        link.check()
        for other in self._links.values():
            if other.number == link.number:
                continue
            if not link.netns and not other.netns:
                if other.ifindex == link.ifindex:
                    raise BpfError(
                        f"endpoint {link.number}: interface {link.ifindex} is endpoint "
                        f"{other.number}'s"
                    )
                for address in {link.ipv4, link.ipv6} & {other.ipv4, other.ipv6} - {""}:
                    raise BpfError(
                        f"endpoint {link.number}: address {address} is endpoint {other.number}'s"
                    )

    def _put(self, link: Link) -> None:
        before = self._links.get(link.number)
        links.write(self._maps, link, self._slots.setdefault(link.number, DENY_ALL))
        if before is not None:
            links.erase(self._maps, before, kept=link)
        self._changed |= before != link
        self._links[link.number] = link

    def _attach_programs(self, link: Link, place: str) -> None:
        name = self._program_name(link)
        if not link.netns:
            links.attach(link, lambda: self.programs.node, name, place)
            return
        with self.programs.sidecar(link.number) as pair:
            links.attach(link, pair, name, place)

    def _program_name(self, link: Link) -> str:
        name = self.programs.name
        return f"{name}-{link.number}" if link.netns else name

    def _leave(self, link: Link) -> None:
        places.leave_link(self._memory, link, link.netns or self.config.netns)


def read_config(opened: Mapping[str, Map], slot: Config) -> int:
    """A number of the map `config`."""
    return int(U64.unpack(opened["config"].get(U32.pack(slot)) or bytes(8))[0])


def _open_maps(config: DatapathConfig) -> dict[str, Map]:
    """The maps; pins that are not what their names say are replaced, and said so."""
    try:
        return maps.open_maps(config.folder, config.sizes)
    except maps.PinMismatch as error:
        log.warning("%s: all pins beside it are made anew", error)
        shutil.rmtree(config.folder)
        return maps.open_maps(config.folder, config.sizes)
