"""Fixtures for tests anywhere: connections under a parser, at two levels.

`open_host` runs a dialogue in pure Python and, as a second test, through the built
library in a C host. Write a parser's dialogues against it once::

    def test_halt(open_host):
        host = open_host("r2d2", [{"cmd": "HALT"}])
        assert host.client(b"HALT\\r\\n") == b"HALT\\r\\n"
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from demos.namespaces import Lab
from demos.servers.maven import Missing
from proxylib.testing import Host, LogRecord
from tests.native.chost import CHost, Rig, compile_host

# Time limits are pytest's: an example that is slow on a busy machine is no failure.
settings.register_profile("proxylib", deadline=None)
settings.load_profile("proxylib")

Rules = Sequence[Mapping[str, str]] | None


class AnyHost(Protocol):
    """What `Host` and `CHost` share."""

    closed: bool

    @property
    def ops(self) -> list[tuple[int, int]]: ...
    @property
    def log(self) -> list[LogRecord]: ...
    def set_policy(self, parser: str, rules: Rules) -> None: ...
    def client(self, *chunks: bytes, end: bool = False) -> bytes: ...
    def server(self, *chunks: bytes, end: bool = False) -> bytes: ...
    def take(self, reply: bool) -> bytes: ...


class OpenHost(Protocol):
    def __call__(
        self, parser: str, rules: Rules = None, *, deny: Sequence[Mapping[str, str]] = ()
    ) -> AnyHost: ...


def text_log(host: AnyHost) -> list[tuple[str, dict[str, str]]]:
    """The log as (entry type, fields), with fields as text whatever the level."""
    return [
        (record.entry_type.name, {key: _text(value) for key, value in record.fields.items()})
        for record in host.log
    ]


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_SYSCTLS = ("ipv4/ip_forward", "ipv4/ip_early_demux", "ipv6/conf/all/forwarding")


def _machine() -> dict[str, object]:
    """What an agent changes of the namespace that it is started in."""
    rules = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=False).stdout
    paths = [path for name in _SYSCTLS if (path := Path("/proc/sys/net", name)).exists()]
    values = {str(path): path.read_text() for path in paths}
    return {**values, "rules": rules, "pins": Path("/sys/fs/bpf/proxylib").exists()}


@pytest.fixture(scope="session", autouse=True)
def machine_as_it_was() -> Iterator[None]:
    """Tests leave the machine's own network namespace alone: they have labs."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield
        return
    before = _machine()
    yield
    assert _machine() == before, "a test has changed the machine's own network namespace"


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled C host."""
    return compile_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A C host with the library, a policy server and a log socket, shared by all tests."""
    rig = Rig(host_program, tmp_path_factory.mktemp("rig"))
    yield rig
    rig.close()


@pytest.fixture(params=["python", "c-abi"])
def open_host(request: pytest.FixtureRequest) -> Iterator[OpenHost]:
    """Opens connections under a parser; see the module's docstring."""
    if request.param == "python":
        yield Host
        return
    rig: Rig = request.getfixturevalue("rig")
    opened: list[CHost] = []

    def open_chost(
        parser: str, rules: Rules = None, *, deny: Sequence[Mapping[str, str]] = ()
    ) -> AnyHost:
        opened.append(CHost(rig, parser, rules, deny=deny))
        return opened[-1]

    yield open_chost
    for host in opened:
        host.close()


class MakeLab(Protocol):
    def __call__(self, *endpoints: str, outside: bool = False, mtu: int = 1500) -> Lab: ...


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """Makes labs (demos/namespaces.py) that end with the test."""
    with ExitStack() as stack:

        def make(*endpoints: str, outside: bool = False, mtu: int = 1500) -> Lab:
            return stack.enter_context(Lab(*endpoints, outside=outside, mtu=mtu))

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    """Without Java or Maven, or root for namespaces, tests of these are skipped with the reason.

    Where ``CI`` is set they fail: a run that must show everything leaves nothing out.
    """
    yield from _skipping()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _skipping()


def _skipping() -> Generator[None, None, None]:
    try:
        yield
    except Missing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
