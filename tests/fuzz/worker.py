"""One libFuzzer process: ``python -m tests.fuzz.worker TARGET [libFuzzer options]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["parsers", "proxylib", "xds"]):
    import parsers.http
    import parsers.kafka
    import parsers.memcache
    import parsers.r2d2  # noqa: F401 - registers the parsers, instrumented
    from tests.fuzz.targets import TARGETS

target = TARGETS[sys.argv.pop(1)]
atheris.Setup(sys.argv, target)
atheris.Fuzz()
