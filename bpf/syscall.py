"""bpf(2), as much of it as the loader needs: maps, pins, programs.

Errors are the kernel's (`OSError`); whoever calls says in which map and what to do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_NUMBER = _NUMBERS.get(platform.machine(), 0)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 0, 1, 2, 3, 4
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 5, 6, 7, 10
MAP_GET_FD_BY_ID, PROG_GET_FD_BY_ID, OBJ_INFO = 14, 13, 15
LOOKUP_BATCH, UPDATE_BATCH, DELETE_BATCH = 24, 26, 27

BATCH = 4096
"""Entries per call of a batch: some hundred KiB, and the kernel is held for about a ms."""

LOG_BYTES = 1 << 24
"""Room for the verifier's log; the kernel takes up to 2^30 - 1."""

_COUNT = struct.Struct("=I")
_COUNT_OFFSET = 32
_SKB_MARK, _SKB_IFINDEX = 8, 40
"""Offsets in struct __sk_buff."""


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """The system call; an attribute that it writes to is written to in a `bytearray`."""
    if not _NUMBER:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    room = bytearray(max(len(attributes), 128))
    room[: len(attributes)] = attributes
    buffer = (ctypes.c_char * len(room)).from_buffer(room)
    result = int(_libc.syscall(_NUMBER, command, buffer, len(room)))
    error = ctypes.get_errno()
    if isinstance(attributes, bytearray):
        attributes[:] = room[: len(attributes)]
    if result < 0:
        raise OSError(error, os.strerror(error))
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def pin(fd: int, path: Path) -> None:
    """Give a map or program a name in a bpffs, which keeps it alive."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, struct.pack("=QII", _address(name), fd, 0))


def get_pinned(path: Path) -> int:
    """The descriptor of what is pinned at `path`; close-on-exec."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(OBJ_GET, struct.pack("=QII", _address(name), 0, 0))


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel knows of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel knows of a program. tag: the kernel's hash of its instructions."""

    type: int
    id: int
    tag: str
    name: str


def _info(fd: int, size: int) -> bytes:
    room = ctypes.create_string_buffer(size)
    bpf(OBJ_INFO, struct.pack("=IIQ", fd, size, _address(room)))
    return room.raw


def map_info(fd: int) -> MapInfo:
    """What the kernel knows of the map `fd`."""
    raw = _info(fd, 80)
    kind, number, key, value, entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, number, key, value, entries, flags, _text(raw[24:40]))


def program_info(fd: int) -> ProgramInfo:
    """What the kernel knows of the program `fd`."""
    raw = _info(fd, 80)
    kind, number = struct.unpack_from("=II", raw)
    return ProgramInfo(kind, number, raw[8:16].hex(), _text(raw[64:80]))


def program_maps(fd: int) -> set[int]:
    """The ids of the maps that the program `fd` uses (at most 64 are told)."""
    ids = ctypes.create_string_buffer(4 * 64)
    room = ctypes.create_string_buffer(80)
    struct.pack_into("=IQ", room, 52, 64, _address(ids))
    bpf(OBJ_INFO, struct.pack("=IIQ", fd, len(room), _address(room)))
    (count,) = struct.unpack_from("=I", room, 52)
    return set(struct.unpack_from(f"={min(count, 64)}I", ids))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def load_program(
    kind: int,
    instructions: bytes,
    name: str,
    attach_type: int = 0,
    attach_to: int = 0,
    log: bool = False,
) -> int:
    """The descriptor of a program that the verifier has taken.

    Raises `VerifierError`. log: have the verifier write its log, which costs time.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    room = ctypes.create_string_buffer(LOG_BYTES if log else 1)
    attributes = struct.pack(
        "=IIQQIIQII16sII36xI",
        kind,
        len(instructions) // 8,
        _address(code),
        _address(licence),
        1 if log else 0,
        LOG_BYTES if log else 0,
        _address(room) if log else 0,
        0,
        0,
        name.encode()[:15],
        0,
        attach_type,
        attach_to,
    )
    try:
        return bpf(PROG_LOAD, attributes)
    except OSError as error:
        if log:
            raise VerifierError(error.errno or 0, room.value.decode(errors="replace")) from error
    return load_program(kind, instructions, name, attach_type, attach_to, log=True)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program made of a packet that there is not. ns: for one run, on average."""

    code: int
    mark: int
    ns: int


def run_program(fd: int, packet: bytes, ifindex: int = 0, mark: int = 0, repeat: int = 1) -> Ran:
    """Have a program judge a packet (BPF_PROG_TEST_RUN).

    ifindex: by which interface of this thread's namespace it comes; 0: loopback. Raises the
    kernel's error, for what is too short for its kind, too.
    """
    data = ctypes.create_string_buffer(packet, len(packet))
    context = ctypes.create_string_buffer(192)
    struct.pack_into("=I", context, _SKB_MARK, mark)
    struct.pack_into("=I", context, _SKB_IFINDEX, ifindex)
    where = _address(context)
    attributes = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQ",
            *(fd, 0, len(packet), 0, _address(data), 0),
            *(repeat, 0, len(context), len(context), where, where),
        )
    )
    bpf(PROG_TEST_RUN, attributes)
    code, ns = (_COUNT.unpack_from(attributes, at)[0] for at in (4, 36))
    return Ran(code, _COUNT.unpack_from(context, _SKB_MARK)[0], ns)


class VerifierError(OSError):
    """The kernel refuses a program; `log` is the verifier's."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


def create_map(
    kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str
) -> int:
    """The descriptor of a new map."""
    return bpf(
        MAP_CREATE,
        struct.pack(
            "=7I16s", kind, key_size, value_size, max_entries, flags, 0, 0, name.encode()[:15]
        ),
    )


class Map:
    """A map's elements as bytes. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)
        percpu = self.info.type in (5, 6, 10, 21)
        cpus = possible_cpus() if percpu else 1
        self.value_size = (
            -(-self.info.value_size // 8) * 8 * cpus if percpu else (self.info.value_size)
        )

    def close(self) -> None:
        """Let go; the map lives on while it is pinned or a program uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _element(self, command: int, key: bytes, value: bytes | None, flags: int = 0) -> bytes:
        where = ctypes.create_string_buffer(key, len(key))
        room = ctypes.create_string_buffer(value or b"", self.value_size)
        pointer = 0 if command == MAP_DELETE else _address(room)
        bpf(command, struct.pack("=IIQQQ", self.fd, 0, _address(where), pointer, flags))
        return room.raw

    def get(self, key: bytes) -> bytes | None:
        """The value (all CPUs' after each other, each padded to 8 bytes), or None."""
        try:
            return self._element(MAP_LOOKUP, key, None)
        except FileNotFoundError:
            return None

    def set(self, key: bytes, value: bytes) -> None:
        """Write one element, as a whole."""
        self._element(MAP_UPDATE, key, value)

    def delete(self, key: bytes) -> bool:
        """True if it was there."""
        try:
            self._element(MAP_DELETE, key, None)
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """Every key, one system call each: what comes and goes meanwhile may be missed."""
        size = self.info.key_size
        room = ctypes.create_string_buffer(size)
        key: bytes | None = None
        while True:
            where = ctypes.create_string_buffer(key, size) if key is not None else None
            pointer = _address(where) if where is not None else 0
            try:
                bpf(MAP_NEXT_KEY, struct.pack("=IIQQQ", self.fd, 0, pointer, _address(room), 0))
            except FileNotFoundError:
                return
            key = room.raw
            yield key

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every element, read by batches."""
        size, value_size = self.info.key_size, self.value_size
        return [
            (keys[n * size : (n + 1) * size], values[n * value_size : (n + 1) * value_size])
            for count, keys, values in self.batches()
            for n in range(count)
        ]

    def count(self) -> int:
        """How many elements there are, counted by batches."""
        return sum(count for count, _, _ in self.batches())

    def batches(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Every element, in parts: (how many, keys after each other, values after each other).

        What follows the last one of a part means nothing.
        """
        key_size, value_size = self.info.key_size, self.value_size
        position = ctypes.create_string_buffer(max(key_size, 8))
        first, room = True, BATCH
        while True:
            keys = ctypes.create_string_buffer(room * key_size)
            values = ctypes.create_string_buffer(room * value_size)
            attributes = bytearray(
                struct.pack(
                    "=QQQQIIQQ",
                    0 if first else _address(position),
                    _address(position),
                    _address(keys),
                    _address(values),
                    room,
                    self.fd,
                    0,
                    0,
                )
            )
            ended = False
            try:
                bpf(LOOKUP_BATCH, attributes)
            except FileNotFoundError:
                ended = True
            except InterruptedError:
                pass  # too many went while it was read: it goes on behind what it has
            except OSError as error:
                if error.errno != errno.ENOSPC:  # a bucket has more than there is room for
                    raise
                room *= 2
                continue
            count = _COUNT.unpack_from(attributes, _COUNT_OFFSET)[0]
            yield count, keys.raw, values.raw
            if ended:
                return
            first = first and not count

    def set_many(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Write elements, by batches. Raises the kernel's error; those before it are written."""
        pairs = list(items)
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            self._batch(
                UPDATE_BATCH, b"".join(k for k, _ in part), b"".join(v for _, v in part), len(part)
            )

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Delete elements, by batches; one that is not there is left out."""
        left = list(keys)
        while left:
            part = left[:BATCH]
            try:
                self._batch(DELETE_BATCH, b"".join(part), b"", len(part))
                done = len(part)
            except _Stopped as stopped:
                if stopped.errno != errno.ENOENT:
                    raise
                done = stopped.count + 1
            del left[:done]

    def _batch(self, command: int, keys: bytes, values: bytes, count: int) -> None:
        key_room = ctypes.create_string_buffer(keys, len(keys))
        value_room = ctypes.create_string_buffer(values, max(len(values), 1))
        attributes = bytearray(
            struct.pack(
                "=QQQQIIQQ",
                0,
                0,
                _address(key_room),
                _address(value_room) if values else 0,
                count,
                self.fd,
                0,
                0,
            )
        )
        try:
            bpf(command, attributes)
        except OSError as error:
            done = _COUNT.unpack_from(attributes, _COUNT_OFFSET)[0]
            raise _Stopped(error.errno or 0, done) from error


class _Stopped(OSError):
    """A batch ended early, after `count` elements."""

    def __init__(self, number: int, count: int) -> None:
        super().__init__(number, os.strerror(number))
        self.count = count


def possible_cpus() -> int:
    """How many values an element of a per-CPU map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    last = text.split(",")[-1].split("-")[-1]
    return int(last) + 1
