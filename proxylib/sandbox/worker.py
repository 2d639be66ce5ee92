"""The process that an isolated parser runs in: ``python -m proxylib.sandbox.worker FD [anew]``.

Reads one filter configuration (a JSON line) from its input, says ``ready`` and the
parser's time budget on its output, and serves its host through the memory FD until
the host is gone (native/isolate.c).  With ``anew`` it is to take the place of one that
runs, and refuses code that a reload (proxylib.reload) would refuse.  It has its own
policy stream; its log goes through the host.  What it may use of the machine is bounded, whatever
its parser does.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import proxylib_native

from proxylib import embed, limits, npds
from proxylib.connection import Connection
from proxylib.embed import FilterConfig
from proxylib.errors import ProxylibError, RegistrationError
from proxylib.instance import log_prefix
from proxylib.parser import ClassFactory
from proxylib.registry import get_parser_factory
from proxylib.reload import author_story, forget_bytecode, self_check

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve one host, until it is gone."""
    memory, anew = int(sys.argv[1]), sys.argv[2:] == ["anew"]
    # When the host is killed; when it closes its end, that is its wish.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    config = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_host, daemon=True).start()
    proxylib_native.collect_log()
    embed.start()
    try:
        filters = _load(config, anew)
    except ProxylibError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        raise SystemExit(1) from None
    factory = get_parser_factory(filters.parser)
    parser_class = getattr(factory, "parser_class", None)
    default: float = getattr(parser_class, "time_budget", limits.TIME_BUDGET)
    budget = filters.settings.time_budget or default
    # The other half of the host's patience is for the interruption to come about.
    filters.settings = replace(filters.settings, time_budget=budget / 2)
    print(json.dumps({"budget": budget}), flush=True)
    os.dup2(2, 1)  # a parser that prints does not talk to the host
    _bound()

    def open_connection(request: bytes) -> tuple[Connection, bytes] | None:
        connection = filters.open(*json.loads(request))
        return None if connection is None else (connection, log_prefix(connection))

    proxylib_native.serve(memory, open_connection)


def _load(config: bytes, anew: bool) -> FilterConfig:
    """The filter of a configuration. Raises ProxylibError."""
    values = embed.read_config(b"", config)
    if not anew:
        return embed.local_config(values)
    forget_bytecode(values["parser"], map(Path, values.get("parser_modules", [])))
    try:
        filters = embed.local_config(values)
    except RegistrationError as error:
        if error.__cause__ is None:
            raise
        story = author_story(error.__cause__)
        raise RegistrationError(f"the new code does not load:\n{story}") from None
    factory = get_parser_factory(filters.parser)
    if isinstance(factory, ClassFactory):
        self_check(factory)
    client = filters.instance.client
    refused = client.refused.get(npds.POLICY_TYPE) if client is not None else None
    if refused:
        raise RegistrationError(f"the new code does not know a rule that is in force: {refused}")
    return filters


def _end_with_host() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _bound() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limits.WORKER_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
