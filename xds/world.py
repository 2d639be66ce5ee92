"""What is published: resources by type and name, replaced as a whole.

Versions that subscribers are told are versions of the content, so that a control
server that starts again and serves the same says the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Resource:
    """A serialized message and its name. Its version is one of its content.

    refreshes: (type URL, name) of resources that Envoy waits for anew when this
    one is updated: a cluster warms with the next endpoints, changed or not.
    """

    name: str
    body: bytes = field(repr=False)
    version: str
    refreshes: tuple[tuple[str, str], ...] = ()


def resource(name: str, body: bytes, refreshes: Iterable[tuple[str, str]] = ()) -> Resource:
    """A Resource with the version that `body` has."""
    return Resource(name, body, hashlib.blake2b(body, digest_size=16).hexdigest(), tuple(refreshes))


def version_of(resources: Iterable[Resource]) -> str:
    """One version for several resources: the same for the same content, in any order."""
    digest = hashlib.blake2b(digest_size=16)
    for item in sorted(resources, key=lambda item: item.name):
        name = item.name.encode()
        digest.update(b"%d:%b%b;" % (len(name), name, item.version.encode()))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The resources of one type. `version` counts its changes; 0: none published yet."""

    type_url: str
    version: int = 0
    resources: Mapping[str, Resource] = field(default_factory=dict, repr=False)

    @cached_property
    def content_version(self) -> str:
        """What subscribers are told: survives a restart of ours."""
        return version_of(self.resources.values())


@dataclass(frozen=True, eq=False)
class World:
    """All that is published at one time. `revision` counts the changes of it."""

    revision: int = 0
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)

    def of(self, type_url: str) -> Snapshot:
        """The snapshot of a type; empty, at version 0, if there is none."""
        return self.snapshots.get(type_url) or Snapshot(type_url)
