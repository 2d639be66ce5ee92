"""The index answers as trying every label set would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.xds.test_labels import requirements, sets
from xds.identity import reserved_labels
from xds.labels import LabelSet, Requirement, Selector
from xds.selection import Selection


@given(st.lists(sets, max_size=8), st.lists(st.frozensets(requirements, max_size=3), max_size=4))
def test_same_as_trying_all(found: list[LabelSet], needs: list[frozenset[Requirement]]) -> None:
    numbered = reserved_labels() | dict(enumerate(found, 256))
    select = Selection(numbered)
    for selector in map(Selector, needs):
        expected = {number for number, labels in numbered.items() if selector.matches(labels)}
        assert select(selector) == expected
        assert select(selector) == expected, "from its memory too"
