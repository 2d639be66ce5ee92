"""The end of an Envoy that nobody looks after, by what it left on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from node.envoy import STOP_GRACE
from node.proxy.generations import Generations
from node.proxy.places import Places


def stop(folder: Path, run_dir: Path, grace: float = STOP_GRACE) -> list[int]:
    """End what runs there, and take away its state, its sockets and its log.

    Returns the numbers of the processes that it ended. Nothing is there: nothing is done.
    Raises SetupError if an agent looks after it.
    """
    if not folder.is_dir():
        return []
    places = Places(folder.absolute(), run_dir.absolute())
    lock = places.take()
    try:
        generations = Generations(places)
        generations.adopt()
        ended = [member.generation.pid for member in generations.members]
        generations.end(grace)
        return ended
    finally:
        os.close(lock)
