"""The table of misbehaving parsers: what each does, and what must come of it.

Every one passes lines and acts on the line ``!``.  Whatever it does then: the lines
before go on, what it did is in the log, its connection ends as the table says, and
nothing else happens.  To add a row, write a function and decorate it.

The file is data for the tests and a parser file for the library.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxylib import DROP, ERROR, MORE, NOP, PASS, BatchParser, Connection, Op, Parser
from proxylib.parser import ClassFactory, ParserFactory
from proxylib.registry import register_parser_factory

BUDGET = 0.1
TRIGGER = b"!\n"
LONG = 10 * BUDGET
"""Seconds of what ends by itself: so long that the watchdog has run meanwhile, on whatever
machine, and others have not had the interpreter for most of it."""

PANIC, ERROR_TEXT, LATE = "Panic: ", "Parser error: ", "Panic: BudgetExceeded: a call ran longer"
ALL = ("python", "c-abi", "envoy")


@dataclass(frozen=True)
class Fault:
    """A misbehaving parser.

    act: called with the parser and the ops (batch), or giving the answer (raw).
    status: a regular expression for the beginning of what the log says; empty: nothing.
    ends: the connection is closed.  forwarded: what of the chunk reaches the server.
    levels: where it can be run.  when: ``data``, ``create`` or ``close``.
    """

    name: str
    act: Callable[..., Any]
    status: str
    raw: bool = False
    ends: bool = True
    levels: Sequence[str] = ALL
    when: str = "data"

    @property
    def parser(self) -> str:
        return f"fault.{self.name}"


TABLE: list[Fault] = []


def fault(status: str, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a row of the table; the function's name is the fault's."""

    def add(act: Callable[..., Any]) -> Callable[..., Any]:
        TABLE.append(Fault(act.__name__.replace("_", "-"), act, status, **how))
        return act

    return add


def raises(name: str, error: BaseException | type[BaseException], status: str) -> None:
    """A row for a parser that raises `error`."""

    def act(parser: Parser, ops: list[int]) -> None:
        raise error

    TABLE.append(Fault(f"raises-{name}", act, status))


def answers(name: str, answer: object, status: str) -> None:
    """A row for a raw parser whose on_data returns `answer`."""
    TABLE.append(Fault(f"answers-{name}", lambda parser: answer, status, raw=True))


def appends(name: str, *items: object, status: str) -> None:
    """A row for a batch parser that appends `items` to its ops."""
    TABLE.append(Fault(f"appends-{name}", lambda parser, ops: ops.extend(items), status))


# Exceptions.


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text for you")


class Endless(Exception):
    def __str__(self) -> str:  # noqa: PLE0307
        while True:
            pass


class Text(str):
    def __getitem__(self, key: object) -> str:
        raise ValueError("no slices")


class Lying(Exception):
    def __str__(self) -> str:
        return Text("a lie")


class Chameleon(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("who am I?")


class Bare(BaseException):
    """Derives from nothing that `except Exception` would catch."""


def chain(depth: int) -> Exception:
    error = Exception("first")
    for n in range(depth):
        following = Exception(str(n))
        following.__cause__ = error
        error = following
    return error


raises(
    "value", ValueError("bad value"), r"Panic: ValueError: bad value \(at .*misbehaving.py:\d+\)"
)
raises("system-exit", SystemExit(3), "Panic: SystemExit: 3")
raises("keyboard-interrupt", KeyboardInterrupt, "Panic: KeyboardInterrupt: ")
raises("generator-exit", GeneratorExit, "Panic: GeneratorExit: ")
raises("stop-iteration", StopIteration("stop"), "Panic: StopIteration: stop")
raises("base", Bare("bare"), "Panic: Bare: bare")
raises("unprintable", Unprintable(), "Panic: Unprintable: <no text: SystemExit>")
raises("endless-text", Endless(), "Panic: Endless: <no text: BudgetExceeded>")
raises("lying-text", Lying(), "Panic: Lying: a lie")
raises("surrogates", ValueError("\udcff\x00 odd"), "Panic: ValueError: ")
raises("long-text", ValueError("x" * 1_000_000), "Panic: ValueError: x{1000}")
raises("group", ExceptionGroup("many", [ValueError("a")]), "Panic: ExceptionGroup: many")
raises("chameleon", Chameleon("x"), "Panic: Chameleon: x")
raises("long-chain", chain(50_000), "Panic: Exception: 49999")
raises("no-exception", 5, "Panic: TypeError: exceptions must derive")  # type: ignore[arg-type]


@fault("Panic: RecursionError: ")
def recursion(parser: Parser, ops: list[int]) -> None:
    recursion(parser, ops)


@fault("Panic: RecursionError: |Panic: BudgetExceeded: ")
def recursion_in_c(parser: Parser, ops: list[int]) -> None:
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    try:
        # Again, if another row's call has just raised the limit, which is everybody's.
        while True:
            repr(nested)
    finally:
        while nested:
            nested = nested.pop()


@fault("Panic: RecursionError: |Panic: BudgetExceeded: ")
def raises_the_recursion_limit(parser: Parser, ops: list[int]) -> None:
    sys.setrecursionlimit(20_000)
    recursion(parser, ops)


@fault("Panic: MemoryError: ")
def memory(parser: Parser, ops: list[int]) -> None:
    bytearray(1 << 62)


@fault("Panic: ValueError: generator already executing")
def generator_runs_itself(parser: Parser, ops: list[int]) -> None:
    def generate() -> Any:
        yield next(running)

    running = generate()
    next(running)


@fault("Panic: RuntimeError: generator raised StopIteration")
def generator_stops_badly(parser: Parser, ops: list[int]) -> None:
    def generate() -> Any:
        raise StopIteration
        yield

    next(generate())


@fault("Panic: RuntimeError: deep")
def deep_traceback(parser: Parser, ops: list[int], depth: int = 700) -> None:
    if not depth:
        raise RuntimeError("deep")
    deep_traceback(parser, ops, depth - 1)


# Answers that are none.

answers("none", None, "Parser error: .*on_data returned None")
answers("text", ("PASS", "1"), "Parser error: .*on_data returned")
answers("three", (PASS, 1, 1), "Parser error: .*on_data returned")
answers("zero", (PASS, 0), "Parser error: op .* with length 0")
answers("negative", (PASS, -1), "Parser error: op .* with length -1")
answers("huge", (PASS, 1 << 80), "Parser error: op .* with length")
answers("unknown", (17, 1), "Parser error: unknown op 17")
answers("float", (PASS, 1.5), "Panic: TypeError: ")
answers("inject", (Op.INJECT, 5), "Parser error: INJECT of 5 bytes, 0 are there")
answers("error", (ERROR, 2), "Parser error: ")
appends("half", PASS, status="Parser error: an op without its length|Panic: ValueError")
appends("text", PASS, "2", status="Panic: TypeError: ")
appends("none", None, None, status="Panic: TypeError: |Parser error: ")
appends("zero", PASS, 0, status="Parser error: ")
appends("negative", DROP, -5, status="Parser error: ")
appends("huge", PASS, 1 << 80, status="Parser error: ")
appends("unknown", 99, 1, status="Parser error: unknown op")
appends("after-more", MORE, 1, PASS, 1, status="Parser error: an op after a terminal op")
appends("more-than-can-be", MORE, 1 << 40, status="Parser error: more than limits.MAX_HELD")
appends("inject", Op.INJECT, 5, status="Parser error: ")
appends("error", ERROR, 3, status="Parser error: ")


@fault("Panic: TypeError: in the middle")
def raises_within_an_op(parser: Parser, ops: list[int]) -> None:
    ops.append(PASS)
    raise TypeError("in the middle")


@fault("Parser error: .*on_data returned <coroutine", raw=True, levels=("c-abi", "envoy"))
def answers_a_coroutine(parser: Parser) -> Any:
    async def later() -> None: ...

    return later()


# Misuse of the connection.


@fault("Parser error: more than 1048576 bytes wait to be injected")
def injects_without_end(parser: Parser, ops: list[int]) -> None:
    while True:
        parser.connection.inject(True, bytes(1000))


@fault("Panic: TypeError: ")
def injects_text(parser: Parser, ops: list[int]) -> None:
    parser.connection.inject(True, "text")  # type: ignore[arg-type]


@fault("Panic: (TypeError|AttributeError): ")
def logs_nothing(parser: Parser, ops: list[int]) -> None:
    parser.connection.log(0, None)  # type: ignore[arg-type]


@fault("Panic: TypeError: ")
def logs_an_object(parser: Parser, ops: list[int]) -> None:
    parser.connection.log(0, {"key": object()})  # type: ignore[dict-item]


@fault("Panic: ValueError: after close")
def closes_its_connection(parser: Parser, ops: list[int]) -> None:
    parser.connection.close()
    raise ValueError("after close")


# Time.


@fault(LATE)
def spins(parser: Parser, ops: list[int]) -> None:
    while True:
        pass


@fault(LATE)
def catches_everything(parser: Parser, ops: list[int]) -> None:
    while True:
        try:
            spins(parser, ops)
        except BaseException:
            continue


@fault(LATE)
def never_leaves_finally(parser: Parser, ops: list[int]) -> None:
    while True:
        try:
            spins(parser, ops)
        finally:
            continue  # noqa: B012


@fault(LATE)
def returns_as_if_in_time(parser: Parser, ops: list[int]) -> None:
    try:
        spins(parser, ops)
    except BaseException:
        ops += (PASS, 2)


@fault(LATE)
def sums_for_ever(parser: Parser, ops: list[int]) -> None:
    sum(1 for _ in iter(int, 1))


@fault(LATE)
def sleeps(parser: Parser, ops: list[int]) -> None:
    time.sleep(LONG)


@fault(LATE)
def waits_for_a_lock(parser: Parser, ops: list[int]) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=LONG)


@fault(LATE)
def backtracks(parser: Parser, ops: list[int]) -> None:
    """In C, with the GIL held: interrupted as soon as that is over."""
    until = time.monotonic() + 2 * BUDGET
    while time.monotonic() < until:
        re.match(r"(a|a)*$", "a" * 16 + "b")
    spins(parser, ops)


@fault(LATE)
def appends_without_end(parser: Parser, ops: list[int]) -> None:
    while True:
        ops += (DROP, 1)


@fault(LATE, raw=True)
def spins_one_at_a_time(parser: Parser) -> Any:
    while True:
        pass


# Memory.


@fault("Panic: the parser holds more than its 33554432 bytes", levels=("envoy",))
def hoards(parser: Parser, ops: list[int]) -> None:
    parser.hoard = b"x" * (40 << 20)  # type: ignore[attr-defined]
    ops += (PASS, 2)


# The process that it runs in.


@fault("Panic: PermissionError: a parser must not use os.fork", levels=("c-abi", "envoy"))
def forks(parser: Parser, ops: list[int]) -> None:
    if os.fork() == 0:
        os._exit(0)


@fault("Panic: PermissionError: a parser must not use subprocess", levels=("c-abi", "envoy"))
def runs_a_program(parser: Parser, ops: list[int]) -> None:
    subprocess.run(["true"], check=True)


@fault("Panic: PermissionError: a parser must not use os.system", levels=("c-abi", "envoy"))
def runs_a_shell(parser: Parser, ops: list[int]) -> None:
    os.system("true")


@fault("Panic: PermissionError: a parser must not use os.kill", levels=("c-abi", "envoy"))
def kills_its_host(parser: Parser, ops: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@fault("Panic: PermissionError: a parser must not use socket.", levels=("c-abi", "envoy"))
def asks_the_network(parser: Parser, ops: list[int]) -> None:
    socket.create_connection(("127.0.0.1", 9), timeout=1)


@fault("Panic: ValueError: signal only works in main thread", levels=("envoy",))
def takes_the_signals(parser: Parser, ops: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@fault("Panic: RuntimeError: with threads")
def leaves_a_thread(parser: Parser, ops: list[int]) -> None:
    def work() -> None:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass

    threading.Thread(target=work, daemon=True).start()
    raise RuntimeError("with threads")


@fault("Panic: RuntimeError: meddled")
def meddles_with_the_interpreter(parser: Parser, ops: list[int]) -> None:
    gc.enable()
    sys.setrecursionlimit(sys.getrecursionlimit() + 500)
    raise RuntimeError("meddled")


@fault("Panic: RuntimeWarning: loud")
def warns(parser: Parser, ops: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("loud", RuntimeWarning, stacklevel=1)


# Beginning and end.


@fault("Panic: ValueError: no parser today", when="create")
def fails_to_begin(connection: Connection) -> Any:
    raise ValueError("no parser today")


@fault("Panic: SystemExit: begin", when="create")
def exits_at_the_beginning(connection: Connection) -> Any:
    raise SystemExit("begin")


@fault(LATE, when="create")
def never_begins(connection: Connection) -> Any:
    while True:
        pass


@fault("Panic: TypeError: the factory made a str, not a Parser", when="create")
def is_no_parser(connection: Connection) -> Any:
    return "a parser"


@fault("Panic: SystemExit: end", when="close", ends=False)
def fails_to_end(parser: Parser) -> None:
    raise SystemExit("end")


@fault(LATE, when="close", ends=False)
def never_ends(parser: Parser) -> None:
    while True:
        pass


# The parsers.


class BatchFaulty(BatchParser):
    """Passes lines, and acts on ``!``."""

    time_budget = BUDGET

    def __init__(self, connection: Connection, fault: Fault) -> None:
        super().__init__(connection)
        self.fault = fault

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        at = 0
        while not reply and (end := data.find(b"\n", at) + 1):
            if data[at:end] == TRIGGER and self.fault.when == "data":
                self.fault.act(self, ops)
                return
            ops += (PASS, end - at)
            at = end
        if reply and data:
            ops += (PASS, len(data))

    def unparsable(self) -> bytes:
        return b"unparsable\n"

    def on_close(self) -> None:
        if self.fault.when == "close":
            self.fault.act(self)


class RawFaulty(Parser):
    """The same, one op at a time."""

    time_budget = BUDGET

    def __init__(self, connection: Connection, fault: Fault) -> None:
        super().__init__(connection)
        self.fault = fault

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        whole = b"".join(data)
        if reply or not whole:
            return (PASS, len(whole)) if whole else (NOP, 0)
        end = whole.find(b"\n") + 1
        if whole[:end] == TRIGGER:
            answer: tuple[Op, int] = self.fault.act(self)
            return answer
        return (PASS, end) if end else (MORE, 1)


# What only a process of its own contains.


def crash() -> None:
    ctypes.string_at(8)


def loop_in_c() -> None:
    """Never comes back to the interpreter, and keeps it."""
    re.match(r"(a|a)*$", "a" * 60 + "b")


def take_all_memory() -> None:
    hoard = []
    while True:
        hoard.append(bytes(1 << 24))


def raise_() -> None:
    raise ValueError("bad")


def spin() -> None:
    while True:
        pass


WORST: dict[bytes, tuple[Callable[[], object], str]] = {
    # word: (what it does, what the log says)
    b"crash": (crash, "was killed by signal 11"),
    b"abort": (os.abort, "was killed by signal 6"),
    b"exit": (lambda: os._exit(7), "exited with status 7"),
    b"loop": (loop_in_c, "gave no answer within its time budget"),
    b"close": (lambda: os.closerange(0, 256) or os._exit(1), "exited with status "),
    b"stop": (lambda: signal.raise_signal(signal.SIGSTOP), "gave no answer within"),
}
MILD: dict[bytes, tuple[Callable[[], object], str]] = {
    # The same, of those that leave the process alive.
    b"raise": (raise_, r"Panic: ValueError: bad \(at .*misbehaving.py:\d+\)"),
    b"spin": (spin, LATE),
    b"memory": (take_all_memory, "Panic: MemoryError: "),
}


class Worst(BatchParser):
    """Passes lines, and does what a line that begins with ``!`` says."""

    def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
        at = 0
        while not reply and (end := data.find(b"\n", at) + 1):
            if data.startswith(b"!", at):
                (WORST | MILD)[data[at + 1 : end - 1]][0]()
            self.connection.log(0, {"line": data[at : end - 1]})
            ops += (PASS, end - at)
            at = end
        if reply and data:
            ops += (PASS, len(data))

    def unparsable(self) -> bytes:
        return b"unparsable\n"


class Factory(ParserFactory):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def create(self, connection: Connection) -> Parser | None:
        if self.fault.when == "create":
            made: Parser | None = self.fault.act(connection)
            return made
        return (RawFaulty if self.fault.raw else BatchFaulty)(connection, self.fault)


NAMES = [row.parser for row in TABLE]

if not __name__.startswith("tests."):
    for row in TABLE:
        register_parser_factory(row.parser, Factory(row))
    register_parser_factory("fault.worst", ClassFactory(Worst))
