"""From a C source to programs in the kernel: bcc compiles, the loader puts maps in and loads.

Compiling (a fifth of a second, in a process of its own) and loading are apart. What was compiled
is kept in a cache by what it was made of; it names its maps (`schema.MAP_NUMBERS`, or those that
the source declares with bcc's macros), and the loader puts in the descriptors of those that it
has. A *constant* is a number that is put in as late: C sees a
macro that is an expression, and one compilation serves every value.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import bcc_worker, headers, schema, syscall
from bpf.errors import BpfError, CompileError

PROGRAMS = Path(__file__).parent / "programs"
"""The sources that come with this package."""

SECONDS = 120.0
"""A compiler that takes longer is ended; it takes less than one on a machine with work to do."""

BCC_FOLDERS = (
    Path("/usr/lib/python3/dist-packages/bcc"),
    *sorted(Path("/usr/lib").glob("python3.*/site-packages/bcc")),
)
"""Where distributions have bcc's Python package. The one named bcc on PyPI is another thing."""

SCHED_CLS, SOCK_OPS, SK_MSG = 3, 13, 16
"""Program types (linux/bpf.h, enum bpf_prog_type)."""

log = logging.getLogger(__name__)

_LOAD_64 = struct.Struct("=BBhiBBhi")


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled function: its instructions, and by their numbers which load a map (by name)."""

    instructions: bytes
    maps: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def decoded(cls, told: Mapping[str, Any]) -> Code:
        """From the worker's answer. Raises `KeyError`, `TypeError`, `ValueError`."""
        names = {
            int(number): str(schema.MAP_NUMBERS.get(at, at)) for number, at in told["maps"].items()
        }
        return cls(base64.b64decode(told["code"], validate=True), names)


def bcc_folder() -> Path | None:
    """The folder of bcc's Python package; None: not installed."""
    return next((path for path in BCC_FOLDERS if (path / "libbcc.py").is_file()), None)


def source_hash(source: Path, macros: Mapping[str, object], constants: Sequence[str] = ()) -> str:
    """What a compilation depends on: the source, the headers beside it and ours, the macros.

    Raises `BpfError` if they cannot be read.
    """
    digest = hashlib.sha256()
    near = sorted({*source.parent.glob("*.h"), *PROGRAMS.glob("*.h")})
    for path in (source, *near, Path(bcc_worker.__file__)):
        try:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        except OSError as error:
            raise BpfError(f"{path} cannot be read: {error.strerror}") from error
    digest.update(repr((sorted(macros.items()), sorted(constants))).encode())
    return digest.hexdigest()[:16]


def compile_source(
    source: Path,
    cache: Path,
    macros: Mapping[str, object] | None = None,
    constants: Sequence[str] = (),
) -> dict[str, Code]:
    """The functions of a C source, by name.

    macros: `-D`; constants: names of numbers that `load` is told. Raises `CompileError`
    with the compiler's messages, and `BpfError` if there is no compiler.
    """
    macros = macros or {}
    kept = cache / "compiled" / f"{source.stem}-{source_hash(source, macros, constants)}.json"
    try:
        return _decoded(json.loads(kept.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, or cut short: made again
    flags = [f"-I{source.parent}", f"-I{PROGRAMS}", "-Wno-unused-value"]
    flags += [f"-D{name}={value}" for name, value in macros.items()]
    flags += [f"-D{name}={_expression(name)}" for name in constants]
    answer = _run_worker(source, headers.tree(cache), flags)
    _keep(kept, answer)
    return _decoded(json.loads(answer))


def _keep(kept: Path, answer: str) -> None:
    fresh = kept.with_suffix(f".{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_text(answer)
        fresh.rename(kept)
    except OSError as error:
        log.warning("%s cannot be kept, and is compiled again next time: %s", kept, error)


def _decoded(functions: Mapping[str, Mapping[str, Any]]) -> dict[str, Code]:
    return {name: Code.decoded(told) for name, told in functions.items()}


def _run_worker(source: Path, tree: Path, flags: list[str]) -> str:
    folder = bcc_folder()
    if folder is None:
        raise BpfError("there is no compiler for programs: install the package python3-bpfcc")
    request = json.dumps({"bcc": str(folder), "text": source.read_text(), "flags": flags})
    environment = {"BCC_KERNEL_SOURCE": str(tree), "PATH": os.environ.get("PATH", os.defpath)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", bcc_worker.__file__],
            input=request,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{source}: compiling took more than {SECONDS:.0f} s", "") from error
    if done.returncode != 0:
        log = done.stderr.replace("/virtual/main.c", str(source)).strip()
        raise CompileError(f"{source} does not compile with {folder}", log)
    return done.stdout


def _magic(name: str) -> int:
    """The number that stands for a constant until it is loaded."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") | 1 << 56


def _expression(name: str) -> str:
    return f'({{u64 v_; asm("%0 = {_magic(name):#x} ll" : "=r"(v_)); v_;}})'


def linked(code: Code, maps: Mapping[str, int], constants: Mapping[str, int]) -> bytes:
    """The instructions with the maps' descriptors and the constants' values in them."""
    room = bytearray(code.instructions)
    for number, name in code.maps.items():
        if name not in maps:
            raise BpfError(f"a program uses the map {name!r}, which the loader does not have")
        struct.pack_into("=i", room, number * 8 + 4, maps[name])
    values = {_magic(name): value for name, value in constants.items()}
    number = 0
    while number < len(room) // 8:
        opcode, registers, *_ = _LOAD_64.unpack_from(room[number * 8 : number * 8 + 16].ljust(16))
        if opcode != bcc_worker.LOAD_64:
            number += 1
            continue
        low, high = (struct.unpack_from("=I", room, number * 8 + at)[0] for at in (4, 12))
        value = values.get(high << 32 | low)
        if registers >> 4 == 0 and value is not None:
            struct.pack_into("=I", room, number * 8 + 4, value & 0xFFFFFFFF)
            struct.pack_into("=I", room, number * 8 + 12, value >> 32)
        number += 2
    return bytes(room)


def load(
    functions: Mapping[str, Code],
    name: str,
    maps: Mapping[str, int],
    kind: int = SCHED_CLS,
    constants: Mapping[str, int] | None = None,
    attach_type: int = 0,
    attach_to: int = 0,
) -> int:
    """The descriptor of one of the functions as a program in the kernel.

    maps: descriptors by name. Raises `CompileError` with the verifier's log.
    """
    if name not in functions:
        raise BpfError(f"there is no function {name!r}: {', '.join(sorted(functions))}")
    code = linked(functions[name], maps, constants or {})
    try:
        return syscall.load_program(kind, code, re.sub(r"\W", "_", name), attach_type, attach_to)
    except syscall.VerifierError as error:
        raise CompileError(f"the kernel refuses the program {name}: {error}", error.log) from error
    except OSError as error:
        raise BpfError(f"the program {name} cannot be loaded: {error}") from error
