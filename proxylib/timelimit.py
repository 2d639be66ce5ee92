"""A limit on code that is run outside of the data path, such as the import of a parser.

The thread is interrupted by an exception when its time is over.  Code that waits in C
(a sleep, a socket) is interrupted when it comes back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(BaseException):
    """The time is over. No Exception, so that ordinary handlers let it pass."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError, which names `what`, if the block takes longer than `seconds`."""
    thread = ctypes.c_ulong(threading.get_ident())
    over = threading.Event()

    def interrupt() -> None:
        over.set()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooLong))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if over.is_set():
                _let_it_come()
    except TooLong as error:
        late = TimeoutError(f"{what} took longer than {seconds:g} s")
        # Where it was, for who has to mend it.
        raise late.with_traceback(error.__traceback__) from None


def _let_it_come() -> None:
    """What was raised as the block ended must not be raised later."""
    for _ in range(1000):
        pass
