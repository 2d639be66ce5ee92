"""Finding, checking, starting and stopping Envoy; stand-ins are small scripts."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from node.address import Address
from node.bootstrap import BootstrapConfig, FilterConfig, build, to_json
from node.envoy import (
    ENVIRONMENT_VARIABLE,
    EnvoyProcess,
    check_release,
    describe,
    find_envoy,
    find_library,
)
from node.errors import SetupError
from proxylib.native import ENVOY_RELEASES


def script(path: Path, code: str) -> Path:
    path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(code))
    path.chmod(0o755)
    return path


def bootstrap(folder: Path, *, parser: str = "r2d2") -> tuple[Path, Path]:
    admin = folder / "admin.sock"
    settings = FilterConfig(parser, folder / "x.sock", folder / "l.sock", "n")
    config = BootstrapConfig(settings, Address("127.0.0.1", 0), Address("127.0.0.1", 9), admin)
    path = folder / "envoy.json"
    path.write_text(to_json(build(config)))
    return path, admin


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sockets need a short path."""
    return tmp_path_factory.mktemp("e")


def test_the_package_s_envoy_is_found_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert check_release(find_envoy()) in ENVOY_RELEASES


def test_the_environment_and_the_option_come_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = script(tmp_path / "one", ""), script(tmp_path / "two", "")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(one))
    assert find_envoy() == one
    assert find_envoy(two) == two
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(SetupError, match=r"from PROXYLIB_ENVOY.*no such file"):
        find_envoy()


def test_no_binary(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no Envoy at .*none .from --envoy.*no such file"):
        find_envoy(tmp_path / "none")
    plain = tmp_path / "plain"
    plain.write_text("x")
    with pytest.raises(SetupError, match="not executable"):
        find_envoy(plain)


def test_another_release_is_refused_by_both_names(tmp_path: Path) -> None:
    said = "envoy  version: 0123/1.36.2/Clean/RELEASE/BoringSSL"
    old = script(tmp_path / "envoy", f"print({said!r})")
    with pytest.raises(SetupError, match=r"is Envoy 1\.36, but .* built for Envoy 1\.40 and 1\.41"):
        check_release(old)


def test_the_next_release_is_taken(tmp_path: Path) -> None:
    said = "envoy  version: 0123/1.41.0-dev/Modified/DEBUG/BoringSSL"
    assert check_release(script(tmp_path / "envoy", f"print({said!r})")) == "1.41"


def test_something_else_is_no_envoy(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not an Envoy: its --version says 'hello"):
        check_release(script(tmp_path / "envoy", "print('hello')"))
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF garbage")
    garbage.chmod(0o755)
    with pytest.raises(SetupError, match="garbage --version"):
        check_release(garbage)


def test_the_library_is_built() -> None:
    assert find_library().is_file()


def test_it_starts_serves_and_stops(short_path: Path) -> None:
    path, admin = bootstrap(short_path)
    with EnvoyProcess(find_envoy(), path, admin) as envoy:
        envoy.wait_ready()
        address = envoy.listeners()["proxy"]
        assert address.host == "127.0.0.1"
        assert address.port > 0
        assert envoy.returncode is None
        assert not envoy.wait(0)
    assert envoy.returncode == 0
    assert envoy.stop() == 0


def test_a_refused_configuration_is_told_with_envoy_s_reason(short_path: Path) -> None:
    path, admin = bootstrap(short_path, parser="nobody")
    lines: list[str] = []
    with (
        EnvoyProcess(find_envoy(), path, admin, on_log=lines.append) as envoy,
        pytest.raises(SetupError, match="Envoy did not start") as caught,
    ):
        envoy.wait_ready()
    assert "nobody" in str(caught.value)
    assert "the last lines of its log" in str(caught.value)
    assert any("nobody" in line for line in lines)


def test_one_that_never_serves_is_stopped(short_path: Path) -> None:
    sleeper = script(
        short_path / "envoy",
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("I am stuck", file=sys.stderr, flush=True)
        time.sleep(60)
        """,
    )
    with EnvoyProcess(sleeper, short_path / "x", short_path / "admin.sock") as envoy:
        while not envoy.tail:
            time.sleep(0.01)
        assert envoy.stop(grace=0.1) == -signal.SIGKILL
        with pytest.raises(SetupError, match=r"killed by SIGKILL.*\n  envoy: I am stuck"):
            envoy.wait_ready(timeout=0.5)
    with (
        EnvoyProcess(sleeper, short_path / "x", short_path / "admin.sock") as envoy,
        pytest.raises(SetupError, match=r"not ready after 0\.3 s"),
    ):
        envoy.wait_ready(timeout=0.3)


def test_endless_log_lines_are_bounded(short_path: Path) -> None:
    talker = script(
        short_path / "envoy",
        "import sys; sys.stderr.write('x' * 300_000); sys.stderr.write('\\nlast\\xff\\n' * 100)",
    )
    with EnvoyProcess(talker, short_path / "x", short_path / "admin.sock") as envoy:
        assert envoy.wait(10)
        text = envoy.obituary("gone")
    assert len(text) < 20 * 40 * 1000
    assert len(envoy.tail) == 40


def test_exit_statuses_in_words() -> None:
    assert describe(None) == "still running"
    assert describe(3) == "exit status 3"
    assert describe(-9) == "killed by SIGKILL"
    assert describe(-40) == "killed by signal 40"
