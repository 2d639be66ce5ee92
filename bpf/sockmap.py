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

import hashlib
import ipaddress
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bpf import compiler, maps, selftest, syscall
from bpf.btf import Btf
from bpf.errors import BpfError
from bpf.netns import within
from bpf.schema import U32, U64, Layout, MapSpec, MapType
from bpf.selftest import Refused, SelfTest
from bpf.syscall import Map

SOURCE = compiler.PROGRAMS / "sockmap.c"
PREFIX = "sockmap-"
LINK = "link"

SOCKETS = 65_536
"""Sockets that take part at most; others go by the wire. Two are a connection, and a connection
through Envoy is two."""

LISTENERS = 16_384

CONNECTION = Layout(
    "connection",
    "addr local",
    "addr remote",
    "u32 local_port",
    "u32 remote_port",
    "u32 sent",
    "u32 received",
)
OWN = Layout(
    "own",
    *(f"{k} {n}" for n, k in CONNECTION.fields.items()),
    "u32 epoch",
    "u32 proof",
    "u32 proxy",
    "u32 pad",
)
PEER = Layout("peer", "u64 socket", "u32 proxy", "u32 pad")
LISTENER = Layout("listener", "u64 netns", "addr address", "u32 port", "u32 pad")
ADDRESS = Layout("addr", "addr address")

COUNTS = 16
FIRST_MAP = 0x1100
MAPS: Mapping[str, MapSpec] = {
    "sockets": MapSpec(MapType.SOCKHASH, CONNECTION, U64, SOCKETS),
    "own": MapSpec(MapType.LRU_HASH, U64, OWN, SOCKETS),
    "peers": MapSpec(MapType.LRU_HASH, CONNECTION, PEER, SOCKETS),
    "listeners": MapSpec(MapType.LRU_HASH, LISTENER, U64, LISTENERS),
    "members": MapSpec(MapType.HASH, ADDRESS, U32, 65_536),
    "switches": MapSpec(MapType.ARRAY, U32, U64, 4),
    "counts": MapSpec(MapType.PERCPU_ARRAY, U32, U64, COUNTS),
}
"""In the order of the source's `enum sockmap_map`."""

_ON, _EPOCH = U32.pack(0), U32.pack(1)

OFFSETS = {
    "FILE_FLAGS": ("file", "f_flags"),
    "ICSK_ULP_OPS": ("inet_connection_sock", "icsk_ulp_ops"),
    "NET_COOKIE": ("net", "net_cookie"),
    "SOCKET_FILE": ("socket", "file"),
    "SOCK_FAMILY": ("sock_common", "skc_family"),
    "SOCK_IPV4": ("sock_common", "skc_rcv_saddr"),
    "SOCK_IPV6": ("sock_common", "skc_v6_rcv_saddr"),
    "SOCK_NET": ("sock_common", "skc_net.net"),
    "SOCK_PORT": ("sock_common", "skc_num"),
    "SOCK_RCVBUF": ("sock", "sk_rcvbuf"),
    "SOCK_RMEM_ALLOC": ("sock", "sk_backlog.rmem_alloc"),
    "SOCK_SOCKET": ("sock", "sk_socket"),
    "SOCK_STATE": ("sock_common", "skc_state"),
    "TCP_COPIED_SEQ": ("tcp_sock", "copied_seq"),
    "TCP_SND_UNA": ("tcp_sock", "snd_una"),
    "TCP_WRITE_SEQ": ("tcp_sock", "write_seq"),
}
"""The source's `OFFSET_…`: the kernel's structure and member."""

UNTESTED = SelfTest(())

_CGROUP_SOCK_OPS, _SK_MSG_VERDICT, _TRACE_ITER = 3, 7, 28
_TRACING = 26
_PROG_ATTACH, _LINK_CREATE, _ITER_CREATE = 8, 28, 33


@dataclass(frozen=True, slots=True)
class SockmapConfig:
    """root: a folder of a bpffs for the pins; None: nothing is pinned, all ends with `close`.

    cache: for headers and compiled programs. cgroup: a folder of cgroup v2; the programs see
    the sockets of processes in it and below. None: its root, where every process is.
    """

    root: Path | None
    cache: Path
    cgroup: Path | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of messages (calls of send) and sockets, since the maps were made.

    messages, bytes: past the stack. The rest went by the wire: off: switched off; alone: the
    peer takes no part (a socket that is alone for good is counted once per GiB); unread: the
    peer had not read what came by the wire; unproven: first after the handshake or a change of
    policy; blocking: the peer's program blocks; full: the peer had half a receive buffer to
    read. sockets: that took part; blocking_sockets: that did not, their program blocks.
    """

    messages: int
    bytes: int
    off: int
    alone: int
    unread: int
    unproven: int
    blocking: int
    full: int
    sockets: int
    blocking_sockets: int


class Sockmap:
    """The programs in force. See the module's docstring; errors are `BpfError`."""

    def __init__(
        self,
        opened: Mapping[str, Map],
        link: int,
        config: SockmapConfig,
        self_test: SelfTest = UNTESTED,
    ) -> None:
        self.self_test = self_test
        self._maps, self._link, self._config = opened, link, config
        self._iterator: int | None = None

    @classmethod
    def open(cls, config: SockmapConfig) -> Sockmap:
        """Take over what is pinned, or load, attach and pin it, switched on.

        If it is to be pinned, this kernel is tested first, which takes a second. What another
        release or another size left pinned is retired: its connections go by the wire.
        Raises `BpfError`, with nothing left behind.
        """
        cgroup = config.cgroup or cgroup_root()
        tested = selftest.run(config.cache, cgroup_root()) if config.root else UNTESTED
        where = config.root / folder_name() if config.root else None
        link = _pinned_link(where)
        if where is not None and link is None:
            retire(where)  # a loader ended half-way
        opened = _open_maps(where)
        try:
            if link is None:
                link = _attach(opened, config, cgroup)
                opened["switches"].set(_ON, U64.pack(1))
                if where is not None:
                    syscall.pin(link, where / LINK)
        except OSError as error:
            maps.close_maps(opened)
            raise BpfError(f"acceleration cannot be attached to {cgroup}: {error}") from error
        except BpfError:
            maps.close_maps(opened)
            raise
        for other in folders(config.root):
            if other != where:
                retire(other)
        return cls(opened, link, config, tested)

    def join(self, addresses: Iterable[str], netns: str = "") -> None:
        """An endpoint takes part: its connections to others that do, and to Envoy.

        netns: a path; programs there that listen already are looked for, others make themselves
        known. Connections that are there already stay as they are. Raises `selftest.Refused`,
        with the sentence of the check, where the self-test has failed.
        """
        if not self.self_test.ok:
            raise Refused(self.self_test.refusal)
        self._maps["members"].set_many([(_address(a), U32.pack(1)) for a in addresses])
        if netns:
            within(netns, self._find_listeners)

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
        for fd in (self._link, self._iterator):
            if fd is not None:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_listeners(self) -> None:
        if self._iterator is None:
            self._iterator = _load_iterator(self._maps, self._config.cache)
        link = syscall.bpf(_LINK_CREATE, struct.pack("=IIII", self._iterator, 0, _TRACE_ITER, 0))
        try:
            walk = syscall.bpf(_ITER_CREATE, struct.pack("=II", link, 0))
            with open(walk, "rb", closefd=True) as walking:
                walking.read()
        except OSError as error:
            raise BpfError(f"the listening sockets cannot be gone through: {error}") from error
        finally:
            os.close(link)


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


def folder_name() -> str:
    """Of the pins: another source or other maps have another."""
    told = [(n, s.type, s.size, s.flags, s.key.fields, s.value.fields) for n, s in MAPS.items()]
    source = compiler.source_hash(SOURCE, {}, sorted(OFFSETS))
    return PREFIX + hashlib.sha256(f"{source} {told!r}".encode()).hexdigest()[:12]


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
    return found


def _open_maps(where: Path | None) -> dict[str, Map]:
    if where is not None:
        return maps.open_maps(where, {}, MAPS)
    opened: dict[str, Map] = {}
    try:
        for name, spec in MAPS.items():
            fd = syscall.create_map(
                spec.type, spec.key.size, spec.value.size, spec.size, spec.flags, name
            )
            opened[name] = Map(fd)
    except OSError as error:
        maps.close_maps(opened)
        raise BpfError(f"the maps of acceleration cannot be made: {error}") from error
    return opened


def _pinned_link(where: Path | None) -> int | None:
    try:
        return syscall.get_pinned(where / LINK) if where else None
    except OSError:
        return None


def _constants() -> dict[str, int]:
    kernel = Btf()
    return {f"OFFSET_{name}": kernel.offset(*member) for name, member in OFFSETS.items()}


def _compiled(cache: Path) -> dict[str, compiler.Code]:
    return compiler.compile_source(SOURCE, cache, {}, [f"OFFSET_{name}" for name in OFFSETS])


def _fds(opened: Mapping[str, Map]) -> dict[str, int]:
    return {str(FIRST_MAP + n): opened[name].fd for n, name in enumerate(MAPS)}


def _attach(opened: Mapping[str, Map], config: SockmapConfig, cgroup: Path) -> int:
    """Load and attach both programs; the link of the one on the cgroup, which holds all."""
    code, fds, constants = _compiled(config.cache), _fds(opened), _constants()
    send = compiler.load(code, "on_send", fds, compiler.SK_MSG, constants, _SK_MSG_VERDICT)
    try:
        attached = struct.pack("=IIII", opened["sockets"].fd, send, _SK_MSG_VERDICT, 0)
        syscall.bpf(_PROG_ATTACH, attached)
    finally:
        os.close(send)
    events = compiler.load(
        code, "socket_events", fds, compiler.SOCK_OPS, constants, _CGROUP_SOCK_OPS
    )
    place = -1
    try:
        place = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        wanted = struct.pack("=IIII", events, place, _CGROUP_SOCK_OPS, 0)
        return syscall.bpf(_LINK_CREATE, wanted)
    finally:
        os.close(events)
        if place >= 0:
            os.close(place)


def _load_iterator(opened: Mapping[str, Map], cache: Path) -> int:
    code = _compiled(cache)
    return compiler.load(
        code,
        "present_listeners",
        _fds(opened),
        _TRACING,
        _constants(),
        _TRACE_ITER,
        Btf().function("bpf_iter_tcp"),
    )


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
