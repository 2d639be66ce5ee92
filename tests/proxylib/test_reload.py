"""New code takes the old one's place, or nothing has happened."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest

from proxylib import registry
from proxylib.errors import RegistrationError
from proxylib.registry import generations, get_parser_factory, load_parser_file, overdue
from proxylib.reload import reload_parser
from proxylib.testing import Host

CODE = """
from proxylib import Exact, FramedParser, L7Rule, Message, lines, parser

@parser("reloaded")
class Reloaded(FramedParser):
    framing = lines(b"\\n")
    seen = 0

    class Rule(L7Rule):
        verb = Exact()

    def request(self, frame):
        self.seen += 1
        return Message(verb=frame, version={version}, seen=self.seen)
{more}
"""

MIGRATE = """
    def migrate(self, old):
        self.seen = old.seen
        return True
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_factories", {})
    monkeypatch.setattr(registry, "_superseded", weakref.WeakKeyDictionary())
    path = tmp_path / "reloaded_parser.py"
    write(path, 1)
    load_parser_file(path)
    return path


def write(path: Path, version: int, more: str = "") -> None:
    path.write_text(CODE.format(version=version, more=more))


def versions(host: Host) -> list[object]:
    return [record.fields["version"] for record in host.log]


def test_new_connections_get_the_new_code_and_running_ones_keep_the_old(code: Path) -> None:
    old = Host("reloaded", [{"verb": "a"}])
    old.client(b"a\n")
    write(code, 2)
    assert reload_parser("reloaded") == ["reloaded"]
    new = Host("reloaded", [{"verb": "a"}])
    for host in (old, new):
        assert host.connection.refresh()
        assert host.client(b"a\nb\n") == b"a\n"
    assert versions(old) == [1, 1, 1]
    assert versions(new) == [2, 2]


def test_an_edit_of_the_same_second_and_size_counts(code: Path) -> None:
    for version in (2, 3, 4):
        write(code, version)
        reload_parser("reloaded")
        host = Host("reloaded")
        host.client(b"a\n")
        assert versions(host) == [version]


def test_a_parser_that_migrates_takes_over_mid_message(code: Path) -> None:
    host = Host("reloaded")
    host.client(b"a\nb\nhal")
    write(code, 2, MIGRATE)
    reload_parser("reloaded")
    assert host.connection.refresh()
    assert host.client(b"f\n") == b"half\n"
    assert host.log[-1].fields == {"verb": b"half", "version": 2, "seen": 3}
    assert [factory.connections for factory in generations("reloaded")] == [1]


@pytest.mark.parametrize(
    "more",
    [
        "    def migrate(self, old): raise ValueError('no')\n",
        "    def migrate(self, old): return False\n",
        "    def migrate(self, old): return 1\n",
    ],
)
def test_a_migration_that_fails_leaves_the_old_code(code: Path, more: str) -> None:
    host = Host("reloaded")
    write(code, 2, more)
    reload_parser("reloaded")
    assert host.connection.refresh()
    host.client(b"a\n")
    assert versions(host) == [1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = (\n", "SyntaxError"),
        ("import not_there\n", "not_there"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("x = 1\n", "registers nothing, not 'reloaded'"),
        (
            CODE.format(
                version=2,
                more="    @classmethod\n    def self_check(cls): raise AssertionError('bad day')\n",
            ),
            "bad day",
        ),
        (CODE.format(version=2, more="").replace("def request", "def other"), "request"),
    ],
)
def test_broken_code_changes_nothing(code: Path, text: str, told: str) -> None:
    modules = {name: id(module) for name, module in sys.modules.items()}
    factory = get_parser_factory("reloaded")
    code.write_text(text)
    with pytest.raises(RegistrationError, match=told):
        reload_parser("reloaded")
    assert get_parser_factory("reloaded") is factory
    assert {name: id(module) for name, module in sys.modules.items()} == modules
    host = Host("reloaded")
    host.client(b"a\n")
    assert versions(host) == [1]


def test_the_traceback_shows_the_authors_line(code: Path) -> None:
    code.write_text("def f():\n    return 1 / 0\n\nf()\n")
    with pytest.raises(RegistrationError) as raised:
        reload_parser("reloaded")
    assert "return 1 / 0" in str(raised.value)
    assert "importlib" not in str(raised.value)
    assert "reload.py" not in str(raised.value)


def test_who_does_not_fit_is_refused(code: Path) -> None:
    def refuse(factories: object) -> None:
        raise RegistrationError("does not fit")

    write(code, 2)
    with pytest.raises(RegistrationError, match="does not fit"):
        reload_parser("reloaded", refuse)
    host = Host("reloaded")
    host.client(b"a\n")
    assert versions(host) == [1]


def test_old_code_is_freed_with_its_last_connection(code: Path) -> None:
    factory = get_parser_factory("reloaded")
    old = weakref.ref(factory.parser_class)  # type: ignore[union-attr]
    del factory
    host = Host("reloaded", [{"verb": "a"}])
    host.client(b"a\n")
    write(code, 2)
    reload_parser("reloaded")
    gc.collect()
    assert old() is not None
    assert [factory.generation for factory in generations("reloaded")] == [2, 1]
    host.connection.close()
    del host
    gc.collect()
    assert old() is None
    assert [factory.generation for factory in generations("reloaded")] == [2]


def test_a_time_to_drain(code: Path) -> None:
    host = Host("reloaded")
    factory = get_parser_factory("reloaded")
    assert factory is not None
    write(code, 2)
    reload_parser("reloaded", drain=1000)
    assert not overdue(factory)
    assert host.connection.refresh()
    write(code, 3)
    reload_parser("reloaded", drain=0)
    late = Host("reloaded")
    assert late.connection.refresh()
    registry._superseded[factory] = ("reloaded", 0.0)
    assert not host.connection.refresh()
    assert host.log[-1].fields["status"] == "Connection closed: parser 'reloaded' has been reloaded"


def test_a_package_is_loaded_anew_with_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_factories", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "reloaded_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        CODE.format(version="VERSION", more="").replace(
            "from proxylib", "from reloaded_package.part import VERSION\nfrom proxylib", 1
        )
    )
    (package / "part.py").write_text("VERSION = 1\n")
    __import__("reloaded_package")
    (package / "part.py").write_text("VERSION = 2\n")
    reload_parser("reloaded")
    host = Host("reloaded")
    host.client(b"a\n")
    assert versions(host) == [2]
    for name in ("reloaded_package", "reloaded_package.part"):
        del sys.modules[name]


def test_rules_are_read_again_for_the_connections_own_version(code: Path) -> None:
    """What is in force was compiled for the new code; the old has its own rule class."""
    host = Host("reloaded", [{"verb": "a"}])
    write(code, 2)
    reload_parser("reloaded")
    host.set_policy("reloaded", [{"verb": "b"}])
    assert host.client(b"a\nb\n") == b"b\n"
    assert host.connection.decision.foreign


def test_rules_that_the_old_version_does_not_know_close(code: Path) -> None:
    host = Host("reloaded", [{"verb": "a"}])
    code.write_text(CODE.format(version=2, more="").replace("verb = Exact()", "noun = Exact()"))
    reload_parser("reloaded")
    host.set_policy("reloaded", [{"noun": "b"}])
    assert host.connection.decision.denied
    assert "does not know the rules: noun" in host.connection.decision.reason


@pytest.mark.parametrize(
    "text",
    [
        "while True:\n    pass\n",
        CODE.format(
            version=2,
            more="    @classmethod\n    def self_check(cls):\n        while True: pass\n",
        ),
    ],
)
def test_code_that_never_finishes_is_refused(
    code: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxylib.reload.LOAD_BUDGET", 0.3)
    code.write_text(text)
    with pytest.raises(RegistrationError, match=r"took longer than 0.3 s") as raised:
        reload_parser("reloaded")
    assert "while True" in str(raised.value) or "pass" in str(raised.value)
    host = Host("reloaded")
    host.client(b"a\n")
    assert versions(host) == [1]
