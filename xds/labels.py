"""Labels and the selectors that choose among them, as Cilium defines both.

A label is ``source:key=value``.  A selector's key may name the source
(``k8s:app``); without one, or with ``any:``, it takes the label from any source.
An endpoint's label without a source has the source ``unspec``.  An endpoint has
at most one label of each key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

ANY = "any"
UNSPEC = "unspec"
RESERVED = "reserved"
K8S = "k8s"

POD_NAMESPACE = "io.kubernetes.pod.namespace"
CLUSTER = "io.cilium.k8s.policy.cluster"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels"
"""Keys of the labels that an endpoint has of its namespace and cluster; the last
with a dot and the key of a label of the namespace itself behind it."""

MAX_LABEL_PART = 512
"""Longest key or value, characters; Kubernetes' own longest key is 317."""


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label of an endpoint."""

    key: str
    value: str = ""
    source: str = UNSPEC

    def __str__(self) -> str:
        return f"{self.source}:{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of an endpoint, sorted; equal sets are one identity."""

    labels: tuple[Label, ...]
    by_key: dict[str, Label] = field(compare=False, repr=False)

    @property
    def reserved(self) -> bool:
        """True for a set such as ``reserved:world``, that no file hands out."""
        return any(label.source == RESERVED for label in self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __str__(self) -> str:
        return " ".join(map(str, self.labels))


def label_set(labels: Iterable[Label]) -> LabelSet:
    """The set of `labels`. Raises ValueError if two have the same key."""
    ordered = tuple(sorted(labels))
    by_key = {label.key: label for label in ordered}
    if len(by_key) != len(ordered):
        twice = next(a.key for a, b in pairwise(ordered) if a.key == b.key)
        raise ValueError(f"two labels have the key {twice!r}")
    return LabelSet(ordered, by_key)


def split_key(text: str) -> tuple[str, str]:
    """(source, key) of ``source:key``; the source is "" if `text` names none.

    Raises ValueError for a key that cannot be a label's.
    """
    source, colon, key = text.partition(":")
    if not colon:
        source, key = "", text
    elif not source:
        raise ValueError(f"{text!r} has nothing before its colon")
    if not key:
        raise ValueError(f"{text!r} is not a label key")
    for part in (source, key):
        check_part(part)
        if "=" in part:
            raise ValueError(f"{text!r} has '=' in its key")
    return source, key


def check_part(text: str) -> None:
    """Raise ValueError unless `text` may stand in a label as source, key or value."""
    if len(text) > MAX_LABEL_PART:
        raise ValueError(f"longer than {MAX_LABEL_PART} characters")
    if not text.isprintable() or any(c.isspace() for c in text):
        raise ValueError(f"{text!r} has a space or a control character in it")


def parse_label(text: str) -> Label:
    """The endpoint label ``[source:]key[=value]``. Raises ValueError if it is not one."""
    name, _, value = text.partition("=")
    return make_label(name, value)


def make_label(name: str, value: str) -> Label:
    """The endpoint label of ``[source:]key`` and a value. Raises ValueError."""
    source, key = split_key(name)
    check_part(value)
    return Label(key, value, UNSPEC if source in ("", ANY) else source)


class Operator(StrEnum):
    """What a requirement asks of a label, in the documents' own words."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition of a selector: about the label `key` of `source` (or of any)."""

    source: str
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: LabelSet) -> bool:
        label = labels.by_key.get(self.key)
        if label is not None and self.source not in (ANY, label.source):
            label = None
        match self.operator:
            case Operator.IN:
                return label is not None and label.value in self.values
            case Operator.NOT_IN:
                return label is None or label.value not in self.values
            case Operator.EXISTS:
                return label is not None
            case Operator.DOES_NOT_EXIST:
                return label is None

    def __str__(self) -> str:
        name = self.key if self.source == ANY else f"{self.source}:{self.key}"
        if self.operator is Operator.IN and len(self.values) == 1:
            return f"{name}={next(iter(self.values))}"
        if not self.values:
            return f"{name} {self.operator}"
        return f"{name} {self.operator} ({', '.join(sorted(self.values))})"


_OF_NO_ENDPOINT = (RESERVED, "cidr")


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none at all selects every endpoint.

    Reserved identities (host, world, and the CIDRs of the world) are chosen only by
    a selector that asks for a ``reserved:`` or ``cidr:`` label: "everybody" means
    every endpoint.
    """

    requirements: frozenset[Requirement] = frozenset()

    def matches(self, labels: LabelSet) -> bool:
        if labels.reserved and not self.names_reserved:
            return False
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def names_reserved(self) -> bool:
        """True if a requirement can only be met by a reserved (or CIDR's) label."""
        return any(
            r.source in _OF_NO_ENDPOINT and r.operator in (Operator.IN, Operator.EXISTS)
            for r in self.requirements
        )

    def names(self, key: str) -> bool:
        """True if a requirement is about the label `key`."""
        return any(r.key == key for r in self.requirements)

    def also(self, *requirements: Requirement) -> Selector:
        """What this selects and has `requirements` too."""
        return Selector(self.requirements.union(requirements))

    def __str__(self) -> str:
        return ", ".join(sorted(map(str, self.requirements))) or "(every endpoint)"


def requirement(name: str, operator: Operator, values: Iterable[str] = ()) -> Requirement:
    """The requirement on the label ``[source:]key``. Raises ValueError for a bad key."""
    source, key = split_key(name)
    return Requirement(source or ANY, key, operator, frozenset(values))
