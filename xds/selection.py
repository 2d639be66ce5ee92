"""Which of many label sets a selector selects, without trying all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from xds.labels import LabelSet, Operator, Selector


class Selection:
    """Answers for one set of numbered label sets; each selector is evaluated once.

    A selector that asks for certain labels is tried only on the sets that have
    one of them.
    """

    def __init__(self, sets: Mapping[int, LabelSet]) -> None:
        self._sets = sets
        self._known: dict[Selector, frozenset[int]] = {}
        self._having: dict[tuple[str, str], set[int]] = defaultdict(set)
        for number, labels in sets.items():
            for label in labels:
                self._having[label.key, label.value].add(number)

    def __call__(self, selector: Selector) -> frozenset[int]:
        """The numbers of the sets that `selector` selects."""
        found = self._known.get(selector)
        if found is None:
            found = self._known[selector] = frozenset(
                number
                for number in self._candidates(selector)
                if selector.matches(self._sets[number])
            )
        return found

    def _candidates(self, selector: Selector) -> Collection[int]:
        for need in selector.requirements:
            if need.operator is Operator.IN:
                having = (self._having.get((need.key, value), set()) for value in need.values)
                return set[int]().union(*having)
        return self._sets
