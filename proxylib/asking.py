"""Questions to others: a parser asks, its connection waits, everything else goes on.

One thread runs all questions of the process, with asyncio; so they can be many and
slow, but must not compute for long.  Every question has a time and an answer for when
there is none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from proxylib import limits
from proxylib.sandbox.place import text

log = logging.getLogger(__name__)


class Answer:
    """What has been, or will be, answered.

    ready: whether there is an answer. value: the answer; `otherwise` until then.
    failed: why there is none but `otherwise`; empty if there is.
    """

    __slots__ = ("_done", "_future", "failed", "ready", "value")

    def __init__(self, otherwise: bool) -> None:
        self.value = otherwise
        self.ready = False
        self.failed = ""
        self._done = threading.Event()
        self._future: Future[bool] | None = None

    def wait(self) -> None:
        """Wait until it is ready, which a time-out sees to."""
        self._done.wait()

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if self._future is not None:
            self._future.cancel()


class _Asker:
    """The thread that asks, and how many questions are open."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = 0
        self._lock = threading.Lock()

    def ask(
        self,
        question: Coroutine[Any, Any, bool],
        timeout: float,
        otherwise: bool,
        wake: Callable[[], None],
    ) -> Answer:
        answer = Answer(otherwise)
        with self._lock:
            if self._open >= limits.MAX_QUESTIONS:
                question.close()
                return self._finish(answer, f"{self._open} questions are open already")
            self._open += 1
            loop = self._running()

        def done(future: Future[bool]) -> None:
            with self._lock:
                self._open -= 1
            self._finish(answer, _outcome(future, answer, timeout))
            wake()

        answer._future = asyncio.run_coroutine_threadsafe(_within(question, timeout), loop)
        answer._future.add_done_callback(done)
        return answer

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._loop.run_forever, name="proxylib-asking", daemon=True
            ).start()
        return self._loop

    def _finish(self, answer: Answer, failed: str) -> Answer:
        answer.failed = failed
        answer.ready = True
        answer._done.set()
        return answer


async def _within(question: Coroutine[Any, Any, bool], timeout: float) -> bool:
    return await asyncio.wait_for(question, timeout)


def _outcome(future: Future[bool], answer: Answer, timeout: float) -> str:
    """Take the answer from `future`; returns why there is none."""
    if future.cancelled():
        return "the connection is gone"
    error = future.exception()
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if error is not None:
        log.error("a parser's question: %s: %s", type(error).__name__, text(error))
        return f"{type(error).__name__}: {text(error)}"
    value: object = future.result()
    if not isinstance(value, bool):
        return f"the answer is {value!r:.100}, not true or false"
    answer.value = value
    return ""


_asker = _Asker()

ask = _asker.ask
"""``ask(question, timeout, otherwise, wake)``: an `Answer`; `wake` is called, in another
thread, when it is ready."""
