"""What must hold of every parser, whatever its protocol.

`check_parser` plays hostile dialogues: noise, the author's own samples cut short,
repeated, spliced and with bytes flipped.  No bytes may make a parser panic, it may
never matter how they are cut, and nothing may make it hold more than the limits
allow.  The choice is random and the same each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from proxylib.testing.chunking import Dialogue, check_chunking

NOISE = (
    b"",
    b"\0",
    b"\r\n",
    b"\n",
    b" ",
    b"\xff" * 8,
    b"\0" * 8,
    b"GET / HTTP/1.1\r\n\r\n",
    b"a" * 64,
)
"""What is mixed in besides random bytes."""

MAX_BURST = 2048
"""Bytes of one burst: byte by byte, a parser may look at all that came before."""


def check_parser(
    parser: str,
    samples: Sequence[bytes] = (),
    rules: Sequence[Mapping[str, str]] | None = None,
    *,
    dialogues: int = 200,
    seed: int = 0,
) -> None:
    """Assert that no dialogue makes `parser` panic, and that cuts do not matter to it.

    samples: what the protocol looks like; without any, only noise is played.
    Raises AssertionError with the dialogue that failed.
    """
    for dialogue in hostile_dialogues(samples, dialogues, seed):
        try:
            outcome = check_chunking(parser, dialogue, rules)
        except AssertionError as error:
            raise AssertionError(f"with the dialogue {dialogue!r}:\n{error}") from None
        for record in outcome.log:
            status = str(record.fields.get("status", ""))
            assert not status.startswith("Panic"), f"{status}\nwith the dialogue {dialogue!r}"


def hostile_dialogues(samples: Sequence[bytes], count: int, seed: int) -> Iterator[Dialogue]:
    """`count` dialogues made of `samples` and noise; the first are the samples themselves."""
    chance = random.Random(seed)
    yield from ([(False, sample)] for sample in samples[:count])
    for _ in range(count - len(samples)):
        turns = range(chance.randint(1, 4))
        yield [(chance.random() < 0.4, _burst(chance, samples)) for _ in turns]


def _burst(chance: random.Random, samples: Sequence[bytes]) -> bytes:
    parts = [_part(chance, samples) for _ in range(chance.randint(1, 4))]
    return b"".join(parts)[:MAX_BURST]


def _part(chance: random.Random, samples: Sequence[bytes]) -> bytes:
    if not samples or chance.random() < 0.2:
        return chance.choice((*NOISE, chance.randbytes(chance.randint(1, 40))))
    part = chance.choice(samples)
    match chance.randint(0, 3):
        case 0:
            return part[: chance.randint(0, len(part))]
        case 1:
            return part[chance.randint(0, len(part)) :]
        case 2 if part:
            at = chance.randrange(len(part))
            return part[:at] + chance.randbytes(1) + part[at + 1 :]
        case _:
            return part
