"""Random streams in random chunks, both ways at once: what goes out is what the model says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import limits
from proxylib.parser import ClassFactory
from proxylib.testing import Host
from tests.native.chost import CHost, Rig
from tests.native.installed import install
from tests.native.scripted import (
    AHEAD,
    HEADER,
    SCRIPTED,
    WHOLE,
    frame,
    random_script,
    without_across,
)


@pytest.fixture(scope="module")
def scripted_rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("scripted")
    rig = Rig(host_program, directory / "rig", library=install(directory / "prefix"))
    yield rig
    rig.close()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("level", ["python", "c-abi"])
@pytest.mark.parametrize("parser", SCRIPTED)
def test_any_chunks(request: pytest.FixtureRequest, parser: str, level: str, seed: int) -> None:
    host: Host | CHost
    if level == "python":
        host = Host(parser, factory=ClassFactory(SCRIPTED[parser]))
    else:
        host = CHost(request.getfixturevalue("scripted_rig"), parser)
    rng = random.Random(seed)
    scripts = [random_script(rng, rng.randrange(1, 80), 50_000) for _ in range(2)]
    pieces = [cut(script.stream, rng, rng.choice([100, 3000, 200_000])) for script in scripts]
    outs = [bytearray(), bytearray()]
    while any(pieces):
        reply = rng.choice([i for i in (0, 1) if pieces[i]])
        piece = pieces[reply].pop()
        outs[reply] += host.server(piece) if reply else host.client(piece)
        outs[not reply] += host.take(reply=not reply)
    # A host of the C ABI asks for what waits to be injected only when bytes come.
    last = frame(AHEAD, b"")
    outs[0] += host.client(last)
    outs[1] += host.take(reply=True) + host.server(last)
    for out, own, other in zip(outs, scripts, reversed(scripts), strict=True):
        assert without_across(bytes(out)) == own.out + last
        assert len(out) == len(own.out + last) + other.across


def cut(stream: bytes, rng: random.Random, largest: int) -> list[bytes]:
    """`stream` in pieces, the last one first."""
    pieces = []
    while stream:
        size = rng.randrange(1, largest)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces[::-1]


@pytest.mark.parametrize("parser", SCRIPTED)
def test_no_more_is_wanted_than_may_be_held(scripted_rig: Rig, parser: str) -> None:
    host = CHost(scripted_rig, parser)
    host.client(frame(WHOLE, bytes(limits.MAX_HELD - HEADER + 1))[:HEADER])
    assert host.closed
    assert "limits.MAX_HELD" in str(host.log[-1].fields["status"])
