"""DNS names and patterns, held against a reading of their own."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.fqdn import MAX_NAME, Fqdn, match_name, match_pattern

labels = st.text(alphabet="ab-1", min_size=1, max_size=4)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.gmem.cc", "docker.gmem.cc", True),
        ("*.gmem.cc", "DOCKER.gmem.cc.", True),
        ("*.gmem.cc", "gmem.cc", False),
        ("*.gmem.cc", "a.b.gmem.cc", False),
        ("**.gmem.cc", "a.b.gmem.cc", True),
        ("**.gmem.cc", "a.gmem.cc", True),
        ("**.gmem.cc", "gmem.cc", False),
        ("*", "anything.at.all", True),
        ("*", "", True),
        ("docker*.gmem.cc", "docker.gmem.cc", True),
        ("docker*.gmem.cc", "docker-2.gmem.cc", True),
        ("*.*.cc", "a.b.cc", True),
        ("*.*.cc", "b.cc", False),
        ("a.cc", "a-cc", False),
        ("a.cc", "a.cc.evil", False),
        ("*.cc", "a\n.cc", False),
        ("*.cc", "a" * 300 + ".cc", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert match_pattern(pattern).matches(name) is matches


def test_names_are_normal() -> None:
    assert match_name("Docker.GMEM.cc.") == Fqdn("docker.gmem.cc")
    assert match_name("docker.gmem.cc").matches("DOCKER.gmem.CC.")
    assert not match_name("docker.gmem.cc").matches("docker.gmem.cc.evil")


@pytest.mark.parametrize("text", ["", ".", "a..b", "a b", "*.a", "ä", "a/b", "a" * (MAX_NAME + 1)])
def test_not_a_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a DNS name"):
        match_name(text)


@pytest.mark.parametrize("text", ["", ".", "a..b", "a b", "ä", "[a]", "a" * (MAX_NAME + 1)])
def test_not_a_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        match_pattern(text)


@given(st.lists(st.text(alphabet="ab-1*", min_size=1, max_size=4), min_size=2, max_size=4), names)
def test_a_pattern_is_one_of_its_labels_each(parts: list[str], name: str) -> None:
    if parts[0] == "**":
        parts[0] = "*"
    found = match_pattern(".".join(parts)).matches(name)
    mine = name.split(".")
    assert found == (
        len(mine) == len(parts)
        and all(fnmatchcase(label, part) for label, part in zip(mine, parts, strict=True))
    )
