"""The pytest plugin for parsers' tests: fixtures that know which parser they are about.

Told in the author's pytest configuration, paths from its folder::

    [tool.pytest.ini_options]
    proxylib_parser = "proxylib_droid.py"    # or an installed parser's name
    proxylib_policy = "policy.yaml"
    proxylib_endpoints = "endpoints.yaml"

It is loaded in every pytest run where proxylib is installed, so it imports what
it needs when a fixture is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from node.address import Address
    from node.parsers import ParserChoice
    from proxylib.proto.accesslog_pb2 import LogEntry

_OPTIONS = {
    "proxylib_parser": "the parser under test: a name, or a Python file that registers it",
    "proxylib_policy": "the policy of its tests",
    "proxylib_endpoints": "who has which labels, for that policy",
}

Rules = Sequence[dict[str, str]]


class EntryList:
    """Access-log entries as they arrive, as `proxylib accesslog` prints them (dicts)."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def add(self, entries: Sequence[LogEntry]) -> None:
        """Take up entries; called from the thread that reads the log."""
        from proxylib.accesslog import entry_to_json

        with self._changed:
            self._entries += map(entry_to_json, entries)
            self._changed.notify_all()

    def wait(self, count: int, timeout: float = 5.0) -> list[dict[str, Any]]:
        """All entries, once there are at least `count`.

        Raises AssertionError if they do not come within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._entries) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"{len(self._entries)} entries, not {count}: {self._entries}"
                self._changed.wait(left)
            return list(self._entries)


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, about in _OPTIONS.items():
        parser.addini(name, about)


def pytest_configure(config: pytest.Config) -> None:
    # envoy-data-plane's generated classes, at import.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:Using `@model_validator` with mode='after' on a classmethod:DeprecationWarning",
    )


def _setting(config: pytest.Config, name: str) -> str:
    value = str(config.getini(name))
    if not value:
        raise pytest.UsageError(f"{name} is not set: {_OPTIONS[name]}")
    return value


def _path(config: pytest.Config, name: str) -> Path:
    return config.rootpath / _setting(config, name)


@pytest.fixture(scope="session")
def _choice(pytestconfig: pytest.Config) -> ParserChoice:
    from node.parsers import choose_parser

    text = _setting(pytestconfig, "proxylib_parser")
    return choose_parser(str(pytestconfig.rootpath / text) if ".py" in text else text)


@pytest.fixture(scope="session")
def parser(_choice: ParserChoice) -> str:
    """The name of the parser under test; it is loaded."""
    return _choice.name


@pytest.fixture(scope="session")
def policy(pytestconfig: pytest.Config, parser: str) -> Rules:
    """The L7 rules that the policy file has for the parser, whomever they are for."""
    from xds.documents import load_policies
    from xds.source import read_documents

    path = _path(pytestconfig, "proxylib_policy")
    rules = [
        dict(pairs)
        for document in load_policies(read_documents(str(path), path.read_text()))
        for rule in (*document.ingress, *document.egress)
        for port in rule.ports or ()
        if port.l7 is not None and port.l7.proto == parser
        for pairs in port.l7.rules
    ]
    assert rules, f"{path} has no rules for l7proto {parser}"
    return rules


@pytest.fixture
def dialogue(parser: str, policy: Rules) -> Callable[..., None]:
    """``dialogue(script)``: what each side says, and what comes of it under the policy.

    See `proxylib.testing.check_dialogue`; ``rules=`` takes the place of the policy file's.
    """
    from proxylib.testing import check_dialogue

    def check(script: str, rules: Rules | None = policy, *, chunking: bool = True) -> None:
        __tracebackhide__ = True
        check_dialogue(parser, script, rules, chunking=chunking)

    return check


@pytest.fixture
def accesslog() -> EntryList:
    """The access log of the proxies that `envoy` runs: ``accesslog.wait(count)``."""
    return EntryList()


@pytest.fixture
def envoy(
    pytestconfig: pytest.Config, _choice: ParserChoice, accesslog: EntryList
) -> Iterator[Callable[[str], Address]]:
    """``envoy("ADDRESS:PORT")``: a real Envoy with the parser in front of that server.

    Returns the address where clients connect; ends with the test.
    """
    from node.address import Address
    from node.run import Proxy, ProxyConfig

    with ExitStack() as proxies:

        def run(upstream: str) -> Address:
            config = ProxyConfig(
                parser=_choice,
                listen=Address.parse("127.0.0.1:0", any_port=True),
                upstream=Address.parse(upstream),
                policies=(_path(pytestconfig, "proxylib_policy"),),
                endpoints=_path(pytestconfig, "proxylib_endpoints"),
                watch=False,
            )
            proxy = proxies.enter_context(Proxy(config, on_entries=accesslog.add))
            return proxy.address

        yield run
