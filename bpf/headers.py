"""The headers that bcc needs to compile a program, without a kernel-headers package.

The kernel's own headers for programs (Debian's linux-libc-dev) are most of it: they are linked
into a small tree, beside few files of our own for what bcc expects of a kernel's source.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from bpf.errors import BpfError

INCLUDE = Path("/usr/include")

_OWN = {
    # bcc brings its own copy and includes it in every source.
    "uapi/linux/bpf.h": "",
    "linux/version.h": (
        "#define LINUX_VERSION_CODE 0\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    ),
    "linux/log2.h": "",
    "asm/page.h": "#define PAGE_SIZE 4096\n",
    # linux/if.h, and by it linux/icmp.h, asks the C library for this one structure.
    "sys/socket.h": "struct sockaddr {\n\tunsigned short sa_family;\n\tchar sa_data[14];\n};\n",
    "linux/kconfig.h": """\
#define CONFIG_BPF_SYSCALL 1
#define __always_inline inline __attribute__((always_inline))
#define true 1
#define false 0
#include <linux/types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
""",
}


def asm_folder() -> Path | None:
    """Where the headers of this machine's architecture are; None: not installed."""
    places = (INCLUDE / f"{platform.machine()}-linux-gnu" / "asm", INCLUDE / "asm")
    return next((place for place in places if place.is_dir()), None)


def installed() -> bool:
    """True if the kernel's headers for programs are there."""
    return asm_folder() is not None and (INCLUDE / "linux" / "if_ether.h").is_file()


def tree(cache: Path) -> Path:
    """The folder to give bcc as the kernel's source; made in `cache` if it is not there.

    Links to the installed headers, so that it never ages. Raises `BpfError`.
    """
    made = cache / "headers"
    asm = asm_folder()
    if asm is None or not installed():
        raise BpfError(
            f"the kernel's headers are not in {INCLUDE}: install the package linux-libc-dev"
        )
    if _complete(made, asm):
        return made
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = Path(tempfile.mkdtemp(prefix="headers.", dir=cache))
        _fill(fresh / "include", asm)
        shutil.rmtree(made, ignore_errors=True)
        fresh.rename(made)
    except OSError as error:
        if not _complete(made, asm):  # else another process was faster
            raise BpfError(f"{made} cannot be made: {error.strerror}") from error
        shutil.rmtree(fresh, ignore_errors=True)
    return made


def _complete(made: Path, asm: Path) -> bool:
    include = made / "include"
    try:
        return (
            (include / "uapi" / "asm").readlink() == asm
            and all((include / name).read_text() == text for name, text in _OWN.items())
            and (include / "uapi" / "linux" / "tcp.h").is_file()
        )
    except OSError:
        return False


def _fill(include: Path, asm: Path) -> None:
    linux = include / "uapi" / "linux"
    linux.mkdir(parents=True)
    for name in os.listdir(INCLUDE / "linux"):
        if f"uapi/linux/{name}" not in _OWN and f"linux/{name}" not in _OWN:
            (linux / name).symlink_to(INCLUDE / "linux" / name)
    (include / "uapi" / "asm").symlink_to(asm)
    (include / "uapi" / "asm-generic").symlink_to(INCLUDE / "asm-generic")
    for name, text in _OWN.items():
        path = include / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
