"""The scene that tests of the proxy's process play in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from node.proxy.turns import AT_ONCE, Turn
from tests.node.proxy.scene import Scene, scene


@pytest.fixture
def node() -> Iterator[Scene]:
    with TemporaryDirectory(prefix="px") as folder, scene(Path(folder)) as found:
        yield found
    # Whatever became of an Envoy: it is nobody's turn any more.
    for turn in [Turn() for _ in range(AT_ONCE)]:
        turn.end()
