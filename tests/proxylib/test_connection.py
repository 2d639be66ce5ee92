"""The OnData loop: which ops come of a parser's answers, and what is an error."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylib import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    NOP,
    PASS,
    BatchParser,
    Connection,
    EntryType,
    FilterResult,
    Op,
    Parser,
    ParserError,
    limits,
)
from proxylib.parser import ClassFactory
from proxylib.policy import PolicyMap
from proxylib.rawloop import MAX_OPS, advance
from proxylib.testing import policy_map

Answer = tuple[int, int]


@dataclass
class Instance:
    policy: PolicyMap = field(default_factory=lambda: policy_map("r2d2", None))


@dataclass
class Log:
    entries: list[tuple[int, dict[str, object], str]] = field(default_factory=list)

    def __call__(self, kind: int, fields: object, proto: str = "", latency: int = 0) -> None:
        self.entries.append((kind, dict(fields), proto))  # type: ignore[call-overload]

    @property
    def statuses(self) -> list[str]:
        return [str(fields["status"]) for _, fields, _ in self.entries]


def make(log: Log | None = None, instance: Instance | None = None) -> Connection:
    return Connection(
        instance or Instance(),
        "r2d2",
        ingress=True,
        src_id=100,
        dst_id=1,
        src_addr="10.0.0.2:1",
        dst_addr="10.0.0.1:80",
        port=80,
        policy_name="10.0.0.1",
        log=log or Log(),
    )


class Scripted(Parser):
    """Gives the answers of a list, one per call, and remembers what it was shown."""

    def __init__(self, connection: Connection, answers: Sequence[Answer | Callable[[], Answer]]):
        super().__init__(connection)
        self.answers = list(answers)
        self.seen: list[bytes] = []

    def on_data(self, reply: bool, end_stream: bool, data: Sequence[bytes]) -> tuple[Op, int]:
        self.seen.append(b"".join(data))
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer  # type: ignore[return-value]


def run(
    data: list[bytes], *answers: Answer | Callable[[], Answer], reply: bool = False
) -> tuple[int, list[int], Scripted, Log]:
    log = Log()
    connection = make(log)
    parser = Scripted(connection, answers)
    connection.attach(parser)
    ops: list[int] = []
    return connection.on_data(reply, False, data, ops), ops, parser, log


@pytest.mark.parametrize(
    ("data", "answers", "ops", "seen"),
    [
        pytest.param([b"ab"], [(MORE, 1)], [0, 1], [b"ab"], id="more ends"),
        pytest.param([b"ab"], [(NOP, 0)], [], [b"ab"], id="nop emits nothing"),
        pytest.param([], [(NOP, 0)], [], [b""], id="empty input is legal"),
        pytest.param([b"ab"], [(PASS, 2), (MORE, 1)], [1, 2, 0, 1], [b"ab", b""], id="pass, more"),
        pytest.param([b"ab"], [(DROP, 2), (NOP, 0)], [2, 2], [b"ab", b""], id="drop, nop"),
        pytest.param(
            [b"abc"], [(PASS, 1), (DROP, 1), (NOP, 0)], [1, 1, 2, 1], [b"abc", b"bc", b"c"],
            id="goes on with the rest",
        ),
        pytest.param([b"ab"], [(PASS, 3)], [1, 3], [b"ab"], id="pass beyond is terminal"),
        pytest.param([b"ab"], [(DROP, 9)], [2, 9], [b"ab"], id="drop beyond is terminal"),
        pytest.param([], [(PASS, 5)], [1, 5], [b""], id="pass ahead of any input"),
        pytest.param([b"ab"], [(ERROR, 2)], [4, 2], [b"ab"], id="error once"),
        pytest.param(
            [b"ab"], [(PASS, 1), (ERROR, 3)], [1, 1, 4, 3], [b"ab", b"b"], id="error after pass"
        ),
        pytest.param(
            [b"a", b"bc", b"d"], [(PASS, 2), (PASS, 2), (NOP, 0)], [1, 2, 1, 2],
            [b"abcd", b"cd", b""], id="across chunks",
        ),
        pytest.param(
            [b"ab"], [(PASS, limits.MAX_OP_BYTES)], [1, limits.MAX_OP_BYTES], [b"ab"], id="largest"
        ),
    ],
)  # fmt: skip
def test_ops(data: list[bytes], answers: list[Answer], ops: list[int], seen: list[bytes]) -> None:
    result, got, parser, log = run(data, *answers)
    assert (result, got, parser.seen) == (FilterResult.OK, ops, seen)
    assert not parser.answers
    assert not log.entries


@pytest.mark.parametrize(
    "answer",
    [
        (PASS, 0), (DROP, 0), (MORE, 0), (INJECT, 0), (ERROR, 0),
        (PASS, -1), (MORE, -(1 << 63)), (PASS, limits.MAX_OP_BYTES + 1), (PASS, 1 << 80),
        (6, 1), (-1, 1), (255, 1), (257, 1),
    ],
)  # fmt: skip
def test_impossible_answer_is_a_parser_error(answer: Answer) -> None:
    result, _, _, log = run([b"ab"], answer)
    assert result == FilterResult.PARSER_ERROR
    (status,) = log.statuses
    assert re.match(r"Parser error: (unknown )?op ", status)


def test_op_list_ends_when_full() -> None:
    result, ops, parser, _ = run([b"x" * 100], *[(PASS, 1)] * 100)
    assert result == FilterResult.OK
    assert ops == [1, 1] * MAX_OPS
    assert len(parser.seen) == MAX_OPS


def test_inject_takes_what_the_parser_has_placed() -> None:
    log = Log()
    connection = make(log)

    def place() -> Answer:
        assert connection.inject(False, b"hello") == 5
        return INJECT, 5

    connection.attach(Scripted(connection, [place, (PASS, 2), (MORE, 1)]))
    ops: list[int] = []
    assert connection.on_data(False, False, [b"ab"], ops) == FilterResult.OK
    assert ops == [3, 5, 1, 2, 0, 1]
    assert connection.injected == (bytearray(b"hello"), bytearray())


def test_inject_of_more_than_was_placed() -> None:
    connection = make(log := Log())
    connection.inject(True, b"the other direction")
    connection.attach(Scripted(connection, [(INJECT, 1)]))
    assert connection.on_data(False, False, [b"ab"], []) == FilterResult.PARSER_ERROR
    assert "INJECT of 1 bytes, 0 are there" in log.statuses[0]


def test_inject_is_bounded() -> None:
    connection = make()
    connection.inject(True, b"x" * limits.MAX_INJECT)
    with pytest.raises(ParserError, match=str(limits.MAX_INJECT)):
        connection.inject(True, b"x")
    assert connection.inject(False, b"x") == 1, "each direction has its own buffer"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "Panic: ValueError: no (at "),
        (SystemExit(1), "Panic: SystemExit: 1 (at "),
        (KeyboardInterrupt(), "Panic: KeyboardInterrupt:  (at "),
        (GeneratorExit(), "Panic: GeneratorExit:  (at "),
        (RecursionError("deep"), "Panic: RecursionError: deep (at "),
        (Unprintable(), "Panic: Unprintable: <no text: KeyboardInterrupt> (at "),
        (ParserError("too long"), "Parser error: too long"),
    ],
)
def test_exception_closes_and_is_logged(error: BaseException, status: str) -> None:
    def fail() -> Answer:
        raise error

    result, _, _, log = run([b"ab"], fail)
    assert result == FilterResult.PARSER_ERROR
    ((kind, fields, proto),) = log.entries
    assert (kind, proto) == (EntryType.Denied, "")
    assert str(fields["status"]).startswith(status)


def test_panic_text_is_bounded() -> None:
    def fail() -> Answer:
        raise ValueError("x" * 10_000_000)

    _, _, _, log = run([b"ab"], fail)
    assert len(log.statuses[0]) < limits.MAX_PANIC_TEXT + 500


def test_no_parser_is_an_unknown_connection() -> None:
    assert make().on_data(False, False, [b"x"], []) == FilterResult.UNKNOWN_CONNECTION


def test_close_tells_the_parser_once() -> None:
    closed: list[int] = []

    class Closing(Scripted):
        def on_close(self) -> None:
            closed.append(1)
            raise SystemExit("late")

    connection = make(log := Log())
    connection.attach(Closing(connection, []))
    connection.close()
    connection.close()
    assert closed == [1]
    assert log.statuses[0].startswith("Panic: SystemExit: late")
    assert connection.on_data(False, False, [b"x"], []) == FilterResult.UNKNOWN_CONNECTION


def test_batch_parser_sees_one_object() -> None:
    class Batch(BatchParser):
        def on_batch(self, reply: bool, end_stream: bool, data: bytes, ops: list[int]) -> None:
            ops += (PASS, len(data), MORE, int(reply) + 2 * int(end_stream))

    connection = make()
    connection.attach(Batch(connection))
    assert connection.batch
    ops: list[int] = []
    assert connection.on_data(True, True, [b"ab", b"c"], ops) == FilterResult.OK
    assert ops == [1, 3, 0, 3]


def test_matches_follows_the_policy_in_force() -> None:
    instance = Instance(policy_map("r2d2", [{"cmd": "HALT"}]))
    connection = make(instance=instance)
    halt, reset = {"cmd": b"HALT", "file": b""}, {"cmd": b"RESET", "file": b""}
    assert (connection.matches(halt), connection.matches(reset)) == (True, False)
    instance.policy = policy_map("r2d2", [{"cmd": "RESET"}])
    assert (connection.matches(halt), connection.matcher(reset)) == (False, True)
    instance.policy = PolicyMap()
    assert not connection.matches(halt)
    assert connection.decision.reason == "no policy for endpoint 10.0.0.1"


@given(st.lists(st.binary(max_size=6), max_size=6), st.integers(0, 40))
def test_advance_is_slicing(chunks: list[bytes], n: int) -> None:
    assert b"".join(advance(chunks, n)) == b"".join(chunks)[n:]


def test_repr_tells_who_talks_to_whom() -> None:
    assert repr(make()) == "<Connection r2d2 ingress 10.0.0.2:1 -> 10.0.0.1:80>"


def test_audit_mode_marks_what_would_be_denied() -> None:
    plain, audit = Log(), Log()
    instance = Instance(policy_map("r2d2", None))
    endpoint = instance.policy.endpoints["10.0.0.1"]
    halt_only = policy_map("r2d2", [{"cmd": "HALT"}]).endpoints["10.0.0.1"]
    instance.policy.endpoints["10.0.0.1"] = replace(endpoint, audit=halt_only)
    connection = make(plain, instance)
    connection.open_audit_log = lambda: audit
    halt, reset = {"cmd": b"HALT", "file": b""}, {"cmd": b"RESET", "file": b""}
    matches, log = connection.matcher, connection.log
    for message in (halt, reset, halt):
        assert matches(message)
        log(EntryType.Request, message)
    assert [fields["cmd"] for _, fields, _ in plain.entries] == [b"HALT", b"HALT"]
    assert [fields["cmd"] for _, fields, _ in audit.entries] == [b"RESET"]
    instance.policy = policy_map("r2d2", None)
    assert connection.matches(reset)
    assert connection.log is plain, "the log costs nothing more when the audit is over"


def test_a_parser_that_is_taken_away_is_freed() -> None:
    connection = make(log := Log())
    assert connection.create(ClassFactory(lambda c: Scripted(c, []))) == FilterResult.OK
    parser = weakref.ref(connection.parser)
    connection.dispossess()
    assert parser() is None
    assert log.statuses == ["Panic: the parser holds more than its 33554432 bytes of memory"]
    assert connection.panicked
