"""Every story ends well, and one that does not is noticed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from demos.servers import cassandra, kafka, maven
from demos.stage import ENDPOINTS, HERE, NETWORK, Stage, find_network
from node.address import Address
from node.errors import SetupError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests/xds/examples"


def tell(*module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("module", "rows"), [("demos.memcached", 24), ("demos.r2d2", 8), ("demos.panic", 7)]
)
def test_a_story(module: str, rows: int) -> None:
    done = tell(module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"All {rows} as expected." in done.stdout
    assert "WRONG" not in done.stdout
    assert "nothing in the log" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.timeout(600)  # the first run downloads the jars
@pytest.mark.parametrize(
    ("module", "rows", "artifacts"),
    [("demos.cassandra", 23, cassandra.ARTIFACTS), ("demos.kafka", 14, kafka.artifacts(kafka.NEW))],
)
def test_a_story_with_a_large_server(
    module: str, rows: int, artifacts: tuple[str, list[str]]
) -> None:
    maven.jars(*artifacts)
    test_a_story(module, rows)


@pytest.mark.parametrize(
    ("mine", "source"),
    [("secure-empire-cassandra", "secure-empire-cassandra"), ("kafka-topics", "kafka-rule2")],
)
def test_the_policy_is_that_of_the_source_documents(mine: str, source: str) -> None:
    def first(path: Path) -> object:
        return next(iter(yaml.safe_load_all(path.read_text())))

    assert first(HERE / f"{mine}.yaml") == first(EXAMPLES / f"{source}.yaml")


def test_all_of_them() -> None:
    started = time.monotonic()
    done = tell("demos")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 39 as expected." in done.stdout
    assert "Panic: RuntimeError: I did not expect that" in done.stdout
    assert time.monotonic() - started < 60


def test_what_is_not_as_expected_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    stage.check("luke", "HALT", "allowed", "allowed")
    assert stage.finish() == 0
    stage.check("luke", "RESET", "denied", "allowed")
    assert stage.finish() == 1
    said = capsys.readouterr().out
    assert "WRONG" in said
    assert "luke RESET: allowed, expected denied" in said


def test_a_story_without_an_observation_proves_nothing() -> None:
    assert Stage().finish() == 1


def test_another_network_if_a_port_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(address: Address) -> None:
        if address.host.startswith((NETWORK, "127.10.1.")):
            raise SetupError("in use")

    monkeypatch.setattr("demos.stage.check_listen", taken)
    assert find_network([(1, 80)]) == "127.10.2."
    stage = Stage("127.10.2.")
    with stage.endpoints() as path:
        text = path.read_text()
    assert "address: 127.10.2.4" in text
    assert NETWORK not in text
    with Stage().endpoints() as path:
        assert path == ENDPOINTS


def test_a_port_that_is_in_use_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(address: Address) -> None:
        raise SetupError(f"{address} is in use")

    monkeypatch.setattr("demos.stage.check_listen", taken)
    with pytest.raises(SetupError, match="is in use"):
        find_network([(1, 80)])
