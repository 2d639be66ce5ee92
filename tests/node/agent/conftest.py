"""What the agent's tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for sockets' names."""
    with tempfile.TemporaryDirectory(prefix="agt") as path:
        yield Path(path)
