"""What tests of the data path need: root, a bpffs and a namespace of their own.

Without root they are skipped, and say so; where ``CI`` is set they fail instead.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf.datapath import Datapath, DatapathConfig
from tests.bpf.nodes import SMALL, Namespace, Node, run

_numbers = itertools.count()


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
    run("umount", "-l", str(where))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where headers and compiled programs are kept."""
    return tmp_path_factory.mktemp("cache")


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


@pytest.fixture
def node(namespace: Namespace, bpffs: Path, cache: Path, tmp_path: Path) -> Node:
    """A node with nothing on it, and the configuration of its data path."""
    namespace.ip(*["addr", "add", "10.0.0.254/32", "dev", "lo"])
    source = Path(__file__).parent / "judge.c"
    config = DatapathConfig(
        bpffs / "p", cache, tmp_path / "state", SMALL, source=source, netns=namespace.path
    )
    return Node(namespace, config)


@pytest.fixture
def datapath(node: Node) -> Iterator[Datapath]:
    opened = node.open()
    yield opened
    opened.close()
