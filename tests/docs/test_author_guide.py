"""Follows docs/author-guide.md in a clean environment, command by command."""

from __future__ import annotations

from tests.docs.pages import DOCS, Reader


def test_all_that_it_says(reader: Reader) -> None:
    reader.follow(DOCS / "author-guide.md")
    assert reader.seen.count("python test") == 2
    assert reader.seen.count("sh background") == 2
    assert reader.seen.count("sh") >= 6
