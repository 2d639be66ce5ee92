"""Builds libproxylib.so: the C files, and Python embedded by cffi.

cffi generates `proxylib_start`: a C function that starts Python if need be and
imports proxylib.embed. All other entry points are the C files' own; they talk to
CPython directly, since a hot path through cffi's argument conversion costs twice
as much.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import cffi
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
EMBEDDING = "_embedding.c"
SOURCES = (
    "start.c",
    "log_entry.c",
    "log_sender.c",
    "accesslog.c",
    "guard.c",
    "memory.c",
    "engine.c",
    "isolate.c",
    "worker.c",
    "cabi.c",
    "envoy_buffer.c",
    "envoy_config.c",
    "live.c",
    "envoy.c",
    "envoy_http.c",
)
HEADERS = (
    *("native.h", "proxylib.h", "log.h", "isolate.h", "channel.h", "build.py"),
    *("envoy_abi.h", "envoy_buffer.h", "envoy_config.h", "envoy_http_abi.h", "live.h"),
)
MODULE = "proxylib.libproxylib"

INIT = """
from libproxylib import ffi
from proxylib import embed

@ffi.def_extern()
def proxylib_start():
    return embed.start()
"""


def library_name() -> str:
    """File name of the shared libpython to load; raises SystemExit if there is none."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or ".so" not in name:
        raise SystemExit(
            f"{sys.executable} has no shared libpython, which Envoy needs to load Python: "
            "use a Python built with --enable-shared (Debian's python3 with python3-dev is)"
        )
    return name


def extension(releases: tuple[str, ...]) -> Extension:
    """The library as a setuptools extension; its C code is written by `BuildLibrary`."""
    libdir = sysconfig.get_config_var("LIBDIR")
    return Extension(
        MODULE,
        sources=[f"proxylib/native/{name}" for name in SOURCES],
        depends=[f"proxylib/native/{name}" for name in HEADERS],
        define_macros=[
            ("PROXYLIB_PYTHON", f'"{sys.executable}"'),
            ("PROXYLIB_LIBPYTHON", f'"{library_name()}"'),
            ("PROXYLIB_ENVOY_RELEASES", f'"{" and ".join(releases)}"'),
        ],
        libraries=[f"python{sysconfig.get_config_var('LDVERSION')}"],
        library_dirs=[libdir],
        runtime_library_dirs=[libdir],
        extra_compile_args=["-O2", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
        # A host may dlclose us; Python and our threads cannot be unloaded.
        extra_link_args=["-Wl,-z,nodelete"],
    )


class BuildLibrary(build_ext):  # type: ignore[misc]
    """build_ext that writes cffi's C code first, and names the file as Envoy wants it."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        ffi = cffi.FFI()
        ffi.embedding_api("int proxylib_start(void);")
        ffi.set_source("libproxylib", "")
        ffi.embedding_init_code(INIT)
        target = Path(self.build_temp) / EMBEDDING
        target.parent.mkdir(parents=True, exist_ok=True)
        ffi.emit_c_code(str(target))
        ext.sources = [*ext.sources, str(target)]
        super().build_extension(ext)
