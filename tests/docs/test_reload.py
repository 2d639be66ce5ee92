"""Follows docs/reload.md in a clean environment, through a real Envoy."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, Reader

# The first of the session waits for the wheel to be built.
pytestmark = pytest.mark.timeout(300)

PAGE = DOCS / "reload.md"


def test_all_that_it_says(reader: Reader) -> None:
    reader.follow(PAGE)
    assert reader.seen.count("text prints") == 3
    assert reader.seen.count("text output") == 2
