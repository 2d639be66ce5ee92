"""Which policies select which identities, both ways round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from xds.labels import LabelSet
from xds.policy import Peer, Policy
from xds.selectors import SelectorCache


class PolicyIndex:
    """The policies of every document, and the identities of endpoints that they select."""

    def __init__(self) -> None:
        self.cache = SelectorCache()
        self._documents: dict[str, tuple[Policy, ...]] = {}
        self._order: dict[Policy, tuple[str, int]] = {}
        self._with_subject: dict[Peer, set[Policy]] = defaultdict(set)
        self._selecting: dict[int, set[Policy]] = {}

    @property
    def documents(self) -> Mapping[str, tuple[Policy, ...]]:
        """The policies of each document, by its key."""
        return self._documents

    def selecting(self, identity: int) -> tuple[Policy, ...]:
        """The policies that select an identity, by their documents' keys and in their order."""
        return tuple(sorted(self._selecting[identity], key=self._order.__getitem__))

    def put(self, key: str, policies: tuple[Policy, ...]) -> set[int]:
        """Replace the policies of a document; the identities that this is about."""
        before = self._documents.pop(key, ())
        if policies:
            self._documents[key] = policies
        if policies == before:
            return set()
        touched: set[int] = set()
        for policy in before:
            for identity in self.cache.select(policy.subject):
                self._selecting[identity].discard(policy)
                touched.add(identity)
            self.cache.remove(policy.subject)
            self._with_subject[policy.subject].discard(policy)
            if not self._with_subject[policy.subject]:
                del self._with_subject[policy.subject]
            del self._order[policy]
        for index, policy in enumerate(policies):
            self._order[policy] = (key, index)
            self.cache.add(policy.subject)
            self._with_subject[policy.subject].add(policy)
            for identity in self.cache.select(policy.subject):
                self._selecting[identity].add(policy)
                touched.add(identity)
        return touched

    def came(self, identity: int, labels: LabelSet) -> bool:
        """Take up an identity of endpoints; False if it is there, with these labels."""
        known = self.cache.identities.get(identity)
        if known == labels:
            return False
        if known is not None:
            # The host, with other labels of its own than before.
            self.went(identity)
        found = self.cache.identity_came(identity, labels)
        self._selecting[identity] = {p for subject in found for p in self._with_subject[subject]}
        return True

    def went(self, identity: int) -> None:
        """Forget an identity that no endpoint has any more."""
        del self._selecting[identity]
        self.cache.identity_went(identity)
