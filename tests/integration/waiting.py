"""Waiting for something that happens elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(happened: Callable[[], bool], timeout: float = 10.0) -> None:
    """Return once `happened()` is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
