"""Acceleration's programs and maps in the kernel: what they are made of, and attaching them.

`sockmap` is for whoever uses them; `programs/sockmap.c` says what they do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from bpf import compiler, maps, syscall
from bpf.btf import Btf
from bpf.errors import BpfError
from bpf.schema import U32, U64, Layout, MapSpec, MapType
from bpf.syscall import Map

SOURCE = compiler.PROGRAMS / "sockmap.c"

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
    "u64 proven",
    "u32 epoch",
    "u32 proof",
    "u32 proxy",
    "u32 read",
    "u32 pending",
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
    "members": MapSpec(MapType.HASH, ADDRESS, U64, 65_536),
    "switches": MapSpec(MapType.ARRAY, U32, U64, 4),
    "counts": MapSpec(MapType.PERCPU_ARRAY, U32, U64, COUNTS),
}
"""In the order of the source's `enum sockmap_map`."""

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
    "SOCK_USERLOCKS": ("sock", "sk_userlocks"),
    "TCP_COPIED_SEQ": ("tcp_sock", "copied_seq"),
    "TCP_SND_UNA": ("tcp_sock", "snd_una"),
    "TCP_WRITE_SEQ": ("tcp_sock", "write_seq"),
}
"""The source's `OFFSET_…`: the kernel's structure and member."""

_CGROUP_SOCK_OPS, _SK_MSG_VERDICT, _TRACE_ITER = 3, 7, 28
_RAW_TRACEPOINT, _TRACING = 17, 26
_PROG_ATTACH, _RAW_TRACEPOINT_OPEN, _LINK_CREATE, _ITER_CREATE = 8, 17, 28, 33


def fingerprint(cgroup: Path) -> str:
    """What tells these programs, these maps and this cgroup from others."""
    told = [(n, s.type, s.size, s.flags, s.key.fields, s.value.fields) for n, s in MAPS.items()]
    source = compiler.source_hash(SOURCE, {}, sorted(OFFSETS))
    return hashlib.sha256(f"{source} {told!r} {cgroup}".encode()).hexdigest()[:12]


def make_maps(where: Path | None) -> dict[str, Map]:
    """The maps, taken over from `where` or made and pinned there; None: not pinned.

    Raises `BpfError`.
    """
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


class Programs:
    """The compiled programs over these maps, ready to be loaded. Raises `BpfError`."""

    def __init__(self, opened: Mapping[str, Map], cache: Path) -> None:
        self._kernel = Btf()
        self._sockets = opened["sockets"]
        self._fds = {str(FIRST_MAP + n): opened[name].fd for n, name in enumerate(MAPS)}
        names = [f"OFFSET_{name}" for name in OFFSETS]
        self._code = compiler.compile_source(SOURCE, cache, {}, names)
        self._constants = {
            f"OFFSET_{name}": self._kernel.offset(*member) for name, member in OFFSETS.items()
        }

    def attach_senders(self) -> None:
        """Judge what the sockets in the map send; the program lives as long as the map."""
        program = self._load("on_send", compiler.SK_MSG, _SK_MSG_VERDICT)
        try:
            wanted = struct.pack("=IIII", self._sockets.fd, program, _SK_MSG_VERDICT, 0)
            syscall.bpf(_PROG_ATTACH, wanted)
        finally:
            os.close(program)

    def attach_cgroup(self, cgroup: Path) -> int:
        """See the sockets of a cgroup; the link."""
        place = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            program = self._load("socket_events", compiler.SOCK_OPS, _CGROUP_SOCK_OPS)
            return self._link(program, place, _CGROUP_SOCK_OPS)
        finally:
            os.close(place)

    def attach_receive(self) -> int:
        """See who reads by recvmsg; the link."""
        program = self._load("on_receive", _RAW_TRACEPOINT, 0)
        name = ctypes.create_string_buffer(b"sock_recv_length")
        try:
            wanted = struct.pack("=QII", ctypes.addressof(name), program, 0)
            return syscall.bpf(_RAW_TRACEPOINT_OPEN, wanted)
        finally:
            os.close(program)

    def find_listeners(self) -> None:
        """Go through the sockets of this thread's namespace for those that listen."""
        walker = self._kernel.function("bpf_iter_tcp")
        program = self._load("present_listeners", _TRACING, _TRACE_ITER, walker)
        link = self._link(program, 0, _TRACE_ITER)
        try:
            walk = syscall.bpf(_ITER_CREATE, struct.pack("=II", link, 0))
            with open(walk, "rb") as walking:
                walking.read()
        except OSError as error:
            raise BpfError(f"the listening sockets cannot be gone through: {error}") from error
        finally:
            os.close(link)

    def _load(self, name: str, kind: int, attach_type: int, attach_to: int = 0) -> int:
        return compiler.load(
            self._code, name, self._fds, kind, self._constants, attach_type, attach_to
        )

    def _link(self, program: int, target: int, attach_type: int) -> int:
        try:
            return syscall.bpf(_LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))
        finally:
            os.close(program)
