"""What tests of the data path need: root, a bpffs and a namespace of their own.

Without root they are skipped, and say so; where ``CI`` is set they fail instead.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf.netns import within

_numbers = itertools.count()


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def privileged() -> None:
    """Root, or the test is left out."""
    if os.geteuid() != 0:
        reason = "needs root: network namespaces and bpf(2)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def bpffs(privileged: None, tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own; with it go all of its pins."""
    where = tmp_path / "bpffs"
    where.mkdir()
    run("mount", "-t", "bpf", "none", str(where))
    yield where
    run("umount", str(where))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where headers and compiled programs are kept."""
    return tmp_path_factory.mktemp("cache")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace of the test's own."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def ip(self, *arguments: str) -> str:
        """What `ip -n NAME …` prints."""
        return run("ip", "-n", self.name, *arguments)

    def tc(self, *arguments: str) -> str:
        """What `tc -n NAME …` prints."""
        return run("tc", "-n", self.name, *arguments)

    def ifindex(self, interface: str) -> int:
        """The number of an interface."""
        text = within(self.path, lambda: run("ip", "-o", "link", "show", "dev", interface))
        return int(text.split(":")[0])

    def veth(self, name: str, peer: str) -> int:
        """A new pair with both ends in here, up; the first one's number."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer)
        for end in (name, peer):
            self.ip("link", "set", end, "up")
        return self.ifindex(name)


@pytest.fixture
def namespaces(privileged: None) -> Iterator[Callable[[], Namespace]]:
    """Makes network namespaces with loopback up."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace(f"bpftest-{os.getpid()}-{next(_numbers)}"))
        run("ip", "netns", "add", made[-1].name)
        made[-1].ip("link", "set", "lo", "up")
        return made[-1]

    yield make
    for one in made:
        subprocess.run(["ip", "netns", "del", one.name], check=False, capture_output=True)


@pytest.fixture
def namespace(namespaces: Callable[[], Namespace]) -> Namespace:
    """A network namespace with loopback up."""
    return namespaces()
