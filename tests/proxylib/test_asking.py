"""A parser may ask somebody else; its connection waits, and there is always an answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from proxylib import WAIT, FramedParser, Message, Parser, lines, parser
from proxylib.asking import Answer, ask
from proxylib.testing import Host, check_chunking


def asked(question, timeout: float = 5.0, otherwise: bool = False) -> Answer:
    woken = threading.Event()
    answer = ask(question, timeout, otherwise, woken.set)
    answer.wait()
    assert woken.wait(5)
    return answer


async def yes() -> bool:
    await asyncio.sleep(0)
    return True


async def never() -> bool:
    await asyncio.sleep(3600)
    return True


async def broken() -> bool:
    raise ConnectionError("nobody is there")


async def odd() -> object:
    return "yes"


def test_an_answer() -> None:
    answer = asked(yes())
    assert (answer.ready, answer.value, answer.failed) == (True, True, "")


@pytest.mark.parametrize("otherwise", [True, False])
@pytest.mark.parametrize(
    ("question", "why"),
    [(never, "no answer within 0.05 s"), (broken, "nobody is there"), (odd, "not true or false")],
)
def test_no_answer_is_what_was_said_for_that_case(question, why: str, otherwise: bool) -> None:
    answer = asked(question(), timeout=0.05, otherwise=otherwise)
    assert answer.ready
    assert answer.value is otherwise
    assert why in answer.failed


def test_a_question_that_nobody_wants_answered() -> None:
    answer = ask(never(), 60, False, lambda: None)
    answer.cancel()
    answer.wait()
    assert answer.failed == "the connection is gone"


def test_so_many_questions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.limits.MAX_QUESTIONS", 2)
    open_ones = [ask(never(), 60, False, lambda: None) for _ in range(2)]
    refused = ask(never(), 60, True, lambda: None)
    assert refused.ready
    assert refused.value
    assert "open already" in refused.failed
    for answer in open_ones:
        answer.cancel()
        answer.wait()


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> type[FramedParser]:
    monkeypatch.setattr("proxylib.registry._factories", {})

    @parser("asking")
    class Asking(FramedParser):
        framing = lines(b"\n")
        ask_timeout = 0.2

        def request(self, frame):
            return Message(frame=frame)

        async def ask(self, request):
            await asyncio.sleep(0.001)
            if request["frame"] == b"slow":
                await asyncio.sleep(3600)
            return request["frame"] != b"no"

        def denied(self, request):
            return b"denied\n"

    return Asking


def test_every_allowed_request_is_asked_about(asking: type[FramedParser]) -> None:
    host = Host("asking")
    assert host.client(b"yes\nno\nyes2\nhal") == b"yes\nyes2\n"
    assert host.take(True) == b"denied\n"
    assert [record.entry_type.name for record in host.log] == ["Request", "Denied", "Request"]
    assert host.client(b"f\n", end=True) == b"half\n"


def test_why_there_was_no_answer_is_in_the_log(asking: type[FramedParser]) -> None:
    host = Host("asking")
    assert host.client(b"slow\n") == b""
    assert host.log[0].fields["asked"] == "no answer within 0.2 s"


def test_cuts_do_not_matter(asking: type[FramedParser]) -> None:
    check_chunking("asking", [(False, b"yes\nno\nyes\n"), (True, b"ok\n")])


def test_the_raw_layer_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.registry._factories", {})

    @parser("raw.asking")
    class Raw(Parser):
        answer = None

        def on_data(self, reply, end_stream, data):
            size = sum(map(len, data))
            if not size:
                return 0, 1
            if self.answer is None:
                self.answer = self.connection.ask(yes(), timeout=1, otherwise=False)
            if not self.answer.ready:
                return WAIT, 1
            passes, self.answer = self.answer.value, None
            return (1 if passes else 2), size

    host = Host("raw.asking")
    assert host.client(b"abc") == b"abc"
    assert host.client(b"d", end=True) == b"d"


def test_a_closed_connection_asks_no_more(asking: type[FramedParser]) -> None:
    host = Host("asking")
    answer = host.connection.ask(never(), timeout=60, otherwise=False)
    host.connection.close()
    answer.wait()
    assert answer.failed
