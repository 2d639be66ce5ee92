"""One agent for all tests that only need some agent, and one of their own for the others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.agents import Agent, running


@pytest.fixture
def agent() -> Iterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="api") as path, running(Path(path)) as found:
        yield found
