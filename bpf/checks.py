"""What the data path needs of the machine: looked at before it starts, each with how to get it.

Features of the kernel are tried, not guessed from its version.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from bpf import compiler, headers, syscall
from bpf.errors import BpfError
from bpf.schema import MAPS, MapType

BPFFS = Path("/sys/fs/bpf")
BPFFS_MAGIC = 0xCAFE4A11
CGROUP2_MAGIC = 0x63677270
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF = 12, 21, 39

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Check:
    """what: is needed; ok: is there; hint: how to get it (empty if it is there).

    needed: without it there is no data path; else only a part of it is missing.
    """

    what: str
    ok: bool
    hint: str = ""
    needed: bool = True


def all_checks(root: Path = BPFFS / "proxylib") -> list[Check]:
    """Every check, in an order in which one explains the next. root: where pins go."""
    rights = _rights()
    found = [rights]
    if rights.ok:
        found += [_map_types(), *_programs(), _bpffs(root)]
    found += [_bcc(), _headers(), _pyroute2(), _cgroup()]
    return [replace(check, hint="") if check.ok else check for check in found]


def require(root: Path) -> None:
    """Raises `BpfError` with what is missing and how to get it; mounts bpffs if need be."""
    lacking = [check for check in all_checks(root) if check.needed and not check.ok]
    if lacking:
        lines = "".join(f"\n  {check.what}: {check.hint}" for check in lacking)
        raise BpfError(f"the data path cannot work on this machine:{lines}")
    mount_bpffs(root)


def filesystem(path: Path) -> int:
    """The magic number of the file system that `path`, or its nearest parent, is on."""
    room = ctypes.create_string_buffer(256)
    while not path.exists():
        path = path.parent
    if _libc.statfs(os.fsencode(path), room) != 0:
        return 0
    return int(struct.unpack_from("=q", room)[0]) & 0xFFFF_FFFF


def mount_bpffs(root: Path) -> None:
    """Mount a bpffs at /sys/fs/bpf if `root` is in there and none is. Raises `BpfError`."""
    if filesystem(root) == BPFFS_MAGIC:
        return
    if not root.is_relative_to(BPFFS):
        raise BpfError(f"{root} is not on a bpffs: mount -t bpf bpf {root}, or give another")
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        reason = os.strerror(ctypes.get_errno())
        raise BpfError(f"no bpffs can be mounted at {BPFFS}: {reason}")


def cgroup2() -> Path | None:
    """The root of the cgroup v2 hierarchy, if there is one."""
    return next((path for path in CGROUPS if filesystem(path) == CGROUP2_MAGIC), None)


def _rights() -> Check:
    what = "rights (CAP_BPF and CAP_NET_ADMIN, or root)"
    try:
        status = Path("/proc/self/status").read_text()
        held = int(status.split("CapEff:", 1)[1].split()[0], 16)
    except (OSError, ValueError, IndexError) as error:
        return Check(what, False, f"/proc/self/status cannot be read: {error}")
    bpf = held >> CAP_BPF & 1 or held >> CAP_SYS_ADMIN & 1
    if bpf and held >> CAP_NET_ADMIN & 1:
        return Check(what, True)
    return Check(what, False, "run it as root, or give the service these capabilities")


def _map_types() -> Check:
    lacking = []
    for kind in sorted({spec.type for spec in MAPS.values()}):
        sizes = {
            MapType.RINGBUF: (0, 0, 1 << 16),
            MapType.ARRAY: (4, 8, 1),
            MapType.PERCPU_ARRAY: (4, 8, 1),
        }.get(kind, (8, 8, 1))
        try:
            flags = 1 if kind is MapType.LPM_TRIE else 0
            os.close(syscall.create_map(kind, *sizes, flags, "check"))
        except OSError as error:
            lacking.append(f"{kind.name.lower()} ({error.strerror})")
    hint = f"this kernel refuses {', '.join(lacking)}: Linux 5.8 has all of them"
    return Check("map types of the kernel", not lacking, hint)


_HELPERS = {84: "sk_lookup_tcp", 85: "sk_lookup_udp", 99: "skc_lookup_tcp", 124: "sk_assign"}
_CALL, _EXIT = 0x85, 0x95


def _programs() -> list[Check]:
    what = "programs of the kernel (tc, sk_assign, ring buffer)"
    try:
        os.close(syscall.load_program(compiler.SCHED_CLS, _instructions((0xB7, 0, 0)), "check"))
    except OSError as error:
        return [Check(what, False, f"bpf(2): {error.strerror}; CONFIG_BPF_SYSCALL, NET_CLS_BPF")]
    lacking = [name for number, name in _HELPERS.items() if not _has_helper(number)]
    hint = f"this kernel has no {', '.join(lacking)}: Linux 5.8 has them"
    return [Check(what, not lacking, hint)]


def _has_helper(number: int) -> bool:
    """A call with no arguments is refused in any case; of what there is not, in other words."""
    try:
        os.close(
            syscall.load_program(
                compiler.SCHED_CLS, _instructions((_CALL, 0, number), (0xB7, 0, 0)), "check"
            )
        )
    except syscall.VerifierError as error:
        return not any(text in error.log for text in ("invalid func", "unknown func"))
    return True


def _instructions(*told: tuple[int, int, int]) -> bytes:
    return b"".join(
        struct.pack("=BBhi", op, reg, 0, imm) for op, reg, imm in (*told, (_EXIT, 0, 0))
    )


def _bpffs(root: Path) -> Check:
    what = f"a bpffs for {root}"
    try:
        mount_bpffs(root)
    except BpfError as error:
        return Check(what, False, str(error))
    return Check(what, True)


def _bcc() -> Check:
    hint = "install the package python3-bpfcc (never the one named bcc on PyPI)"
    return Check("a compiler for programs (bcc)", compiler.bcc_folder() is not None, hint)


def _headers() -> Check:
    return Check("headers for programs", headers.installed(), "install the package linux-libc-dev")


def _pyroute2() -> Check:
    try:
        import pyroute2
    except ImportError as error:
        return Check("pyroute2", False, f"{error}: pip install pyroute2")
    return Check("pyroute2", bool(pyroute2))


def _cgroup() -> Check:
    hint = "mount -t cgroup2 none /sys/fs/cgroup/unified (only sockmap acceleration needs it)"
    return Check("cgroup v2", cgroup2() is not None, hint, needed=False)
