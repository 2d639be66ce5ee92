"""The shared library: where it is, and which Envoy releases it fits.

The C sources beside this file are its two faces (Envoy's dynamic-module network
filter, the proxylib C ABI) over one Python core; native.h says which file does
what, build.py builds them with cffi.
"""

from __future__ import annotations

from pathlib import Path

ENVOY_RELEASES = ("1.40", "1.41")
"""Envoy promises that a module built for X.Y runs on X.Y and X.(Y+1); this one is for 1.40."""

LIBRARY = "libproxylib.so"


def library_path() -> Path:
    """Path of the shared library.

    Raises FileNotFoundError if it has not been built.
    """
    path = Path(__file__).resolve().parent.parent / LIBRARY
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} has not been built: run 'make' (in a checkout) or 'pip install .'"
        )
    return path
