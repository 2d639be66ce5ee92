"""Follows docs/author-guide.md in a clean environment, command by command."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, Reader

# The first of the session waits for the wheel to be built.
pytestmark = pytest.mark.timeout(300)


def test_all_that_it_says(reader: Reader) -> None:
    reader.follow(DOCS / "author-guide.md")
    assert reader.seen.count("python test") == 2
    assert reader.seen.count("sh background") == 3
    assert reader.seen.count("sh") >= 6
