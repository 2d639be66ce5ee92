"""What can be asked of a running library at its control socket (proxylib.control).

Reload a parser, here and in the processes that it is in, all of them or none; see which
code runs, and how often; find where a debugger waits.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import proxylib_native

from proxylib.control import Command, ControlSocket
from proxylib.debugging import debug_path
from proxylib.errors import ConfigError
from proxylib.instance import InstanceTable
from proxylib.registry import generations, loaded_parser_names
from proxylib.reload import reload_parser
from proxylib.sandbox import breaker_of
from proxylib.sandbox.isolation import Process, Worker

log = logging.getLogger(__name__)


class Isolated(Protocol):
    """A listener whose parser is in a process of its own."""

    @property
    def parser(self) -> str: ...

    @property
    def worker(self) -> Worker: ...


isolated: list[Isolated] = []
"""The listeners of this process whose parser is in another."""

_controls: dict[str, ControlSocket] = {}
"""The control sockets of this process, by path; they last as long as it does."""

_reloading = threading.Lock()
"""One reload at a time."""


def serve(path: str, instances: InstanceTable) -> None:
    """Have a control socket at `path`, if there is none. Raises ConfigError."""
    if path not in _controls:
        commands: dict[str, Command] = {
            "reload": partial(_reload, instances),
            "status": _status,
            "debug": _debug,
        }
        try:
            _controls[path] = ControlSocket(Path(path), commands)
        except OSError as error:
            raise ConfigError(f"control_path {path!r}: {error.strerror or error}") from error


def _reload(instances: InstanceTable, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command ``{"command": "reload", "parser": NAME, "drain": SECONDS or null}``."""
    name, drain = request.get("parser"), request.get("drain")
    if not isinstance(name, str) or not (drain is None or isinstance(drain, (int, float))):
        raise ConfigError("reload: parser is a name, drain a number of seconds or null")
    with _reloading, _giving_way():
        names = _load_anew(name, drain, instances)
    for each in names:
        breaker_of(each).reset()
    proxylib_native.reloaded()
    if drain is not None:
        # Once more, when the connections of the old code have had their time.
        timer = threading.Timer(drain, proxylib_native.reloaded)
        timer.daemon = True
        timer.start()
    log.info("reloaded %s", ", ".join(names))
    return {"parsers": names}


@contextmanager
def _giving_way() -> Iterator[None]:
    """Inside the block, work that takes a while holds up nobody who has a message to judge:
    each waits for the interpreter for no longer than it takes to judge some."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 10)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _load_anew(name: str, drain: float | None, instances: InstanceTable) -> list[str]:
    """Put the code of parser `name` as it is now in force, here and in its processes.

    Raises RegistrationError; nothing has happened then.
    """
    workers = [config.worker for config in isolated if config.parser == name]
    fresh: list[Process] = []
    try:
        for worker in workers:
            fresh.append(worker.prepare())
        names = {name}
        # Nothing of a parser that is elsewhere only is imported here.
        if not workers or name in loaded_parser_names():
            names.update(reload_parser(name, instances.check_rules, drain=drain))
            instances.parsers_loaded(names)
    except BaseException:
        for process in fresh:
            process.close()
        raise
    for worker, process in zip(workers, fresh, strict=True):
        worker.replace(process, drain)
    return sorted(names)


def _status(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command ``{"command": "status"}``: the parsers in use, their code and breakers."""
    elsewhere = {config.parser for config in isolated}
    return {
        "parsers": {
            name: {
                "generations": _generations(name),
                "processes": [
                    {"pid": p.pid, "generation": p.generation, "connections": p.connections}
                    for p in _processes(name)
                ],
                "breaker": breaker_of(name).state,
                "panics": breaker_of(name).total,
            }
            for name in sorted({*loaded_parser_names(), *elsewhere})
        }
    }


def _processes(name: str) -> list[Process]:
    """The processes of parser `name`, of all listeners."""
    return [p for c in isolated if c.parser == name for p in c.worker.processes]


def _generations(name: str) -> Mapping[int, int]:
    """How many connections run on which generation of the code, newest first."""
    counts: Counter[int] = Counter()
    for factory in generations(name):
        counts[factory.generation] += factory.connections
    for process in _processes(name):
        counts[process.generation] += process.connections
    return dict(sorted(counts.items(), reverse=True))


def _debug(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command ``{"command": "debug"}``: the socket where breakpoints wait."""
    return {"path": debug_path()}
