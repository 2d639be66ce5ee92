"""Acceleration: bytes between two sockets of this node go past the TCP stack.

`programs/sockmap.c` says how, and why nothing is reordered, lost or unbounded. This loads it,
attaches it to a cgroup (by a pinned link, so that it outlives its loader) and tells it which
endpoints take part: those that have *joined*, by their addresses, and Envoy, by its marks. Of an
endpoint's programs, those take part whose sockets are non-blocking; all others keep plain TCP.

    with Sockmap.open(SockmapConfig(root, cache)) as sockmap:
        sockmap.join(["10.1.0.2", "fd10:1::2"], netns="/run/netns/client")
        sockmap.bump()          # after a change of policy: connections are judged again
        sockmap.switch(False)   # all go by the wire from their next message on

Everything stays in force when the loader ends; `cleanup` takes it away. Connections survive
that: sockets of theirs leave the map when they are closed, and go by the wire until then.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from bpf import maps, selftest, syscall
from bpf.errors import BpfError
from bpf.netns import cookie, within
from bpf.schema import U32, U64
from bpf.selftest import Refused, SelfTest
from bpf.sockmap_programs import Programs, fingerprint, make_maps
from bpf.syscall import Map

PREFIX = "sockmap-"
LINK, RECEIVE_LINK = "link", "receive"
"""Pins of the links; that of the cgroup comes last, and with it all is there."""

_ON, _EPOCH, _NODE = U32.pack(0), U32.pack(1), U32.pack(2)
UNTESTED = SelfTest(())


@dataclass(frozen=True, slots=True)
class SockmapConfig:
    """root: a folder of a bpffs for the pins; None: nothing is pinned, all ends with `close`.

    cache: for headers and compiled programs. cgroup: a folder of cgroup v2; the programs see
    the sockets of processes in it and below. None: its root, where every process is.
    node: the network namespace that Envoy is in, as a path; empty: this thread's.
    """

    root: Path | None
    cache: Path
    cgroup: Path | None = None
    node: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of messages (calls of send) and sockets, since the maps were made.

    messages, bytes: past the stack. The rest went by the wire: off: switched off; alone: the
    peer takes no part (a socket that is alone for good is counted once per GiB); unread: the
    peer had not read what came by the wire; unproven: first after the handshake or a change of
    policy; blocking: the peer's program blocks; full: the peer had half a receive buffer to
    read; spliced: the peer's program reads by splice(2).
    sockets: that took part; no_room, blocking_sockets: that did not, because the map is full, or
    their program blocks.
    """

    messages: int
    bytes: int
    off: int
    alone: int
    unread: int
    unproven: int
    blocking: int
    full: int
    spliced: int
    sockets: int
    no_room: int
    blocking_sockets: int


class Sockmap:
    """The programs in force. See the module's docstring; errors are `BpfError`."""

    def __init__(
        self,
        opened: Mapping[str, Map],
        links: Sequence[int],
        config: SockmapConfig,
        self_test: SelfTest = UNTESTED,
    ) -> None:
        self.self_test = self_test
        self._maps, self._links, self._config = opened, links, config

    @classmethod
    def open(cls, config: SockmapConfig) -> Sockmap:
        """Take over what is pinned, or load, attach and pin it, switched on.

        If it is to be pinned, this kernel is tested first, which takes a second. What another
        release or another cgroup left pinned is retired: its connections go by the wire.
        Raises `BpfError`, with nothing left behind.
        """
        cgroup = config.cgroup or cgroup_root()
        tested = selftest.run(config.cache, cgroup_root()) if config.root else UNTESTED
        where = config.root / f"{PREFIX}{fingerprint(cgroup)}" if config.root else None
        if where is not None and not (where / LINK).exists():
            retire(where)  # a loader ended half-way
        with ExitStack() as undo:
            if where is not None:
                undo.callback(retire, where)
            opened = make_maps(where)
            undo.callback(maps.close_maps, opened)
            try:
                links = _links(opened, config, cgroup, where)
                opened["switches"].set(_NODE, U64.pack(within(config.node, cookie)))
            except OSError as error:
                raise BpfError(f"acceleration cannot be attached to {cgroup}: {error}") from error
            undo.pop_all()
        for other in folders(config.root):
            if other != where:
                retire(other)
        return cls(opened, links, config, tested)

    def join(self, addresses: Iterable[str], netns: str = "") -> None:
        """An endpoint takes part: its connections to others that do, and to Envoy.

        netns: its namespace, as a path: sockets elsewhere that have the same address are others',
        and programs in there that listen already are looked for. Without it, any socket with the
        address is meant, and programs have to begin to listen after this was opened.
        Connections that are there already stay as they are. Raises `selftest.Refused`, with the
        sentence of the check, where the self-test has failed.
        """
        if not self.self_test.ok:
            raise Refused(self.self_test.refusal)
        keys = [_address(address) for address in addresses]
        where = within(netns, cookie) if netns else 0
        if netns:
            programs = Programs(self._maps, self._config.cache)
            within(netns, programs.find_listeners)
        self._maps["members"].set_many([(key, U64.pack(where)) for key in keys])

    def leave(self, addresses: Iterable[str]) -> None:
        """An endpoint takes no part any more: its connections go by the wire from their next
        message on."""
        for address in addresses:
            self._maps["members"].delete(_address(address))

    def members(self) -> frozenset[str]:
        """The addresses that have joined."""
        return frozenset(_text(key) for key, _ in self._maps["members"].items())

    @property
    def on(self) -> bool:
        return self._maps["switches"].get(_ON) == U64.pack(1)

    def switch(self, on: bool) -> None:
        """Off: every connection goes by the wire from its next message on, and new ones stay
        there. On: those that took part before do again. Safe at any time, for any connection."""
        self._maps["switches"].set(_ON, U64.pack(int(on)))

    def bump(self) -> None:
        """After a change of policy: the next message of every connection, in each direction,
        goes by the wire, where it is judged; the rest follows it there until it has passed."""
        (epoch,) = U64.unpack(self._maps["switches"].get(_EPOCH) or bytes(8))
        self._maps["switches"].set(_EPOCH, U64.pack((epoch + 1) & 0xFFFFFFFF))

    def counts(self) -> Counts:
        """What became of messages and sockets."""
        raw = [self._maps["counts"].get(U32.pack(n)) or b"" for n in range(len(Counts.__slots__))]
        return Counts(*(sum(struct.unpack(f"={len(one) // 8}Q", one)) for one in raw))

    def sockets(self) -> int:
        """How many sockets take part now."""
        return self._maps["peers"].count()

    def close(self) -> None:
        """Let go. What is pinned stays in force; what is not ends for new connections, and
        those that are there go by the wire."""
        if self._config.root is None:
            self.switch(False)
        maps.close_maps(self._maps)
        for link in self._links:
            os.close(link)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted. Raises `BpfError`."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where.encode().decode("unicode_escape"))
    raise BpfError(
        "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified "
        "(beside version 1), or boot with systemd.unified_cgroup_hierarchy=1"
    )


def folders(root: Path | None) -> list[Path]:
    """Every folder of pins of ours below `root`."""
    return sorted(root.glob(f"{PREFIX}*")) if root is not None else []


def retire(where: Path) -> None:
    """Switch off what is pinned there, for ever, and unpin it.

    What no socket uses is gone at once; the rest when the last connection of it is closed.
    """
    if not where.is_dir():
        return
    try:
        switches = Map(syscall.get_pinned(where / "switches"))
    except OSError:
        pass  # not even made
    else:
        switches.set(_ON, U64.pack(0))
        switches.close()
    shutil.rmtree(where)


def cleanup(root: Path) -> list[Path]:
    """Take everything of ours below `root` away, whoever made it; the folders that were there.

    No byte of a running connection is lost. An agent that still runs has to end first.
    """
    found = folders(root)
    for where in found:
        retire(where)
    with suppress(BpfError):  # without cgroup v2 there was never a self-test
        selftest.sweep(cgroup_root())
    return found


def _links(
    opened: Mapping[str, Map], config: SockmapConfig, cgroup: Path, where: Path | None
) -> list[int]:
    """Those that are pinned, or new ones."""
    if where is not None and (where / LINK).exists():
        return [syscall.get_pinned(where / name) for name in (RECEIVE_LINK, LINK)]
    programs = Programs(opened, config.cache)
    programs.attach_senders()
    opened["switches"].set(_ON, U64.pack(1))
    with ExitStack() as undo:
        links = []
        for name, attach in (
            (RECEIVE_LINK, programs.attach_receive),
            (LINK, partial(programs.attach_cgroup, cgroup)),
        ):
            links.append(attach())
            undo.callback(os.close, links[-1])
            if where is not None:
                syscall.pin(links[-1], where / name)
        undo.pop_all()
    return links


def _address(text: str) -> bytes:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise BpfError(f"acceleration takes IP addresses: {error}") from error
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _text(key: bytes) -> str:
    address = ipaddress.IPv6Address(key)
    return str(address.ipv4_mapped or address)
