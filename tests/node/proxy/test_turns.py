"""A few Envoys start at a time."""

from __future__ import annotations

import threading

from node.proxy.turns import AT_ONCE, Turn


def test_one_too_many_waits() -> None:
    turns = [Turn() for _ in range(AT_ONCE)]
    late: list[Turn] = []
    thread = threading.Thread(target=lambda: late.append(Turn()))
    thread.start()
    thread.join(0.1)
    assert not late
    turns[0].end()
    turns[0].end()
    thread.join(10)
    assert len(late) == 1
    another = threading.Thread(target=lambda: late.append(Turn()))
    another.start()
    another.join(0.1)
    assert len(late) == 1, "a turn that ends twice is one turn"
    turns[1].end()
    another.join(10)
    for turn in (*turns, *late):
        turn.end()
