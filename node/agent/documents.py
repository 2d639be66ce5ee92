"""Policy documents as the agent keeps them: by kind, namespace and name.

A document that came by REST is kept as plain values and shown as JSON text, whose
lines are the places in messages after a restart; a file is kept as its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xds.documents import load_document
from xds.labels import Label, parse_label
from xds.policy import Policy
from xds.quarantine import load_quarantined
from xds.source import Document, DocumentError, Place, Problem, read_documents

_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
"""Characters that JSON takes as they are, and YAML as line breaks or not at all."""


@dataclass(frozen=True, slots=True, eq=False)
class PolicyDocument:
    """One document. policies: what its rules (specs) say, at least one.

    revision: the one that brought it as it is. file: where it comes from; empty for
    the REST API.
    """

    value: Mapping[str, Any]
    policies: tuple[Policy, ...]
    revision: int
    file: str = ""

    @property
    def kind(self) -> str:
        return self.policies[0].kind

    @property
    def namespace(self) -> str:
        """Its namespace; empty if it has none."""
        return self.policies[0].namespace

    @property
    def name(self) -> str:
        return self.policies[0].name

    @property
    def key(self) -> str:
        """``Kind/namespace/name``, or ``Kind/name`` without a namespace."""
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)

    @property
    def place(self) -> Place:
        """Where its name stands."""
        return self.policies[0].origin.document.place(("metadata", "name"))

    @property
    def text(self) -> str:
        """The document as JSON, and spelt so that it is YAML as well."""
        text = json.dumps(self.value, indent=2, ensure_ascii=False)
        return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

    def problems(self) -> list[Problem]:
        """What is wrong with rules that were good once, and are closed now."""
        rules = (rule for policy in self.policies for rule in (*policy.ingress, *policy.egress))
        return [rule.quarantined for rule in rules if rule.quarantined is not None]

    def has_labels(self, wanted: Sequence[Label]) -> bool:
        """Whether one of its rules has all of the `wanted` labels."""
        return any(_has_all(policy, wanted) for policy in self.policies)

    def without(self, wanted: Sequence[Label]) -> PolicyDocument | None:
        """The document without the rules that have all of `wanted`; None if none is left.

        Itself if it has no such rule.
        """
        specs = self.value.get("specs")
        several = specs if isinstance(specs, list) else [] if specs is None else [specs]
        single = [self.value["spec"]] if self.value.get("spec") is not None else []
        kept = [
            spec
            for spec, policy in zip((*single, *several), self.policies, strict=True)
            if not _has_all(policy, wanted)
        ]
        if not kept:
            return None
        if len(kept) == len(self.policies):
            return self
        value = {k: v for k, v in self.value.items() if k not in ("spec", "specs")}
        text = json.dumps({**value, "specs": kept})
        (document,) = load_documents(self.key, text, self.revision)
        return document


def _has_all(policy: Policy, wanted: Sequence[Label]) -> bool:
    return all(any(means(want, label) for label in policy.labels) for want in wanted)


def means(wanted: Label, label: Label) -> bool:
    """Whether `label` is the one that `wanted` asks for, of any source unless it names one."""
    same = (wanted.key, wanted.value) == (label.key, label.value)
    return same and wanted.source in ("unspec", label.source)


def parse_labels(texts: Iterable[str]) -> list[Label]:
    """The labels that `texts` are. Raises ValueError, naming the text that is none."""
    return [parse_label(text) for text in texts]


def show_label(label: Label) -> str:
    """``source:key=value``, without the ``=`` of a label that has no value."""
    return f"{label.source}:{label.key}" + (f"={label.value}" if label.value else "")


def load_documents(
    name: str, text: str, revision: int, file: str = "", *, closed: bool = False
) -> list[PolicyDocument]:
    """The documents of `text`; `name` is what messages call it.

    closed: they were good once, and what is bad now fails closed (xds/quarantine.py).
    Raises DocumentError with everything that is wrong with any of them.
    """
    documents = read_documents(name, text)
    if not documents:
        raise DocumentError([Problem(Place(name), "holds no document")])
    found: dict[str, PolicyDocument] = {}
    problems: list[Problem] = []
    for document in documents:
        try:
            policies = _load(document, closed)
        except DocumentError as error:
            problems += error.problems
            continue
        item = PolicyDocument(document.value, tuple(policies), revision, file)
        if found.setdefault(item.key, item) is not item:
            message = f"{item.key} is there twice in this text"
            problems.append(document.problem(("metadata", "name"), message))
    if problems:
        raise DocumentError(problems)
    return list(found.values())


def load_all(texts: Iterable[tuple[str, str]]) -> list[PolicyDocument]:
    """The documents of several texts, each with its name in messages.

    Raises DocumentError with everything that is wrong with any of them.
    """
    found: dict[str, PolicyDocument] = {}
    problems: list[Problem] = []
    for name, text in texts:
        try:
            documents = load_documents(name, text, 0)
        except DocumentError as error:
            problems += error.problems
            continue
        for document in documents:
            first = found.setdefault(document.key, document)
            if first is not document:
                message = f"{document.key} is there twice: {first.place}"
                problems.append(Problem(document.place, message))
    if problems:
        raise DocumentError(problems)
    return list(found.values())


def _load(document: Document, closed: bool) -> list[Policy]:
    return load_quarantined(document, load_document) if closed else load_document(document)
