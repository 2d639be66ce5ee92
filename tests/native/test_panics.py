"""Parsers that misbehave, in a host without Python: one connection closes, all else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import FilterResult, limits
from tests.native.chost import Rig
from tests.native.hostile import ACTIONS, ANSWERS
from tests.native.installed import install
from tests.native.services import network_policy


@pytest.fixture(scope="module")
def hostile_rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A rig over an installation whose parsers misbehave."""
    directory = tmp_path_factory.mktemp("hostile")
    rig = Rig(host_program, directory / "rig", library=install(directory / "prefix"))
    yield rig
    rig.close()


def open_both(rig: Rig, parser: str) -> tuple[int, str, int]:
    """A connection under `parser` with its endpoint, and a neighbour under r2d2."""
    number, endpoint = rig.endpoint()
    neighbour, _ = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, parser, None))
    where = {"policy_name": endpoint, "dst_addr": f"{endpoint}:80"}
    assert rig.process.new_connection(rig.instance, number, parser, **where) == FilterResult.OK
    assert rig.process.new_connection(rig.instance, neighbour, "r2d2", **where) == FilterResult.OK
    return number, endpoint, neighbour


def statuses(rig: Rig, endpoint: str) -> list[str]:
    entries = rig.entries(endpoint)
    return [e.generic_l7.fields["status"] for e in entries if "status" in e.generic_l7.fields]


@pytest.mark.parametrize("kind", ["raise", "batch"])
@pytest.mark.parametrize("action", ACTIONS)
def test_exception_closes_one_connection(hostile_rig: Rig, kind: str, action: str) -> None:
    rig = hostile_rig
    number, endpoint, neighbour = open_both(rig, f"{kind}-{action}")
    assert rig.process.io(number, False, False, b"fine").out == (b"fine", b"")
    event = rig.process.io(number, False, False, b"!boom")
    if kind == "batch":
        # What it had decided before goes on; the host hears of it with its next call.
        assert (event.error, event.out) == ("", (b"!", b""))
        event = rig.process.io(number, False, False, b"more")
    assert event.error == "result"
    assert event.calls[-1].result == FilterResult.PARSER_ERROR
    assert event.out == (b"", b"")
    assert rig.process.io(neighbour, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
    (status,) = statuses(rig, endpoint)
    assert status.startswith("Panic: ")
    assert len(status) <= limits.MAX_LOG_VALUE
    rig.process.close(neighbour)


@pytest.mark.parametrize("action", ACTIONS)
def test_exception_in_a_factory_refuses_the_connection(hostile_rig: Rig, action: str) -> None:
    number, endpoint = hostile_rig.endpoint()
    result = hostile_rig.process.new_connection(
        hostile_rig.instance, number, f"create-{action}", policy_name=endpoint
    )
    assert result == FilterResult.PARSER_ERROR
    (status,) = statuses(hostile_rig, endpoint)
    assert status.startswith("Panic: ")


@pytest.mark.parametrize("answer", ANSWERS)
def test_impossible_answer_is_a_parser_error(hostile_rig: Rig, answer: str) -> None:
    rig = hostile_rig
    number, endpoint, neighbour = open_both(rig, answer)
    event = rig.process.io(number, False, False, b"!")
    assert event.calls[-1].result == FilterResult.PARSER_ERROR
    assert event.out == (b"", b"")
    assert rig.process.io(neighbour, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
    (status,) = statuses(rig, endpoint)
    assert status.startswith(("Parser error: ", "Panic: "))
    rig.process.close(neighbour)


def test_factory_may_refuse(hostile_rig: Rig) -> None:
    number, endpoint = hostile_rig.endpoint()
    result = hostile_rig.process.new_connection(
        hostile_rig.instance, number, "veto", policy_name=endpoint
    )
    assert result == FilterResult.POLICY_DROP


def test_veto_comes_after_the_address(hostile_rig: Rig) -> None:
    number, _ = hostile_rig.endpoint()
    result = hostile_rig.process.new_connection(
        hostile_rig.instance, number, "veto", policy_name="", dst_addr="nowhere"
    )
    assert result == FilterResult.INVALID_ADDRESS


def test_exception_at_close_is_contained(hostile_rig: Rig) -> None:
    number, endpoint, neighbour = open_both(hostile_rig, "close-raises")
    hostile_rig.process.close(number)
    assert hostile_rig.process.io(neighbour, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
    (status,) = statuses(hostile_rig, endpoint)
    assert status.startswith("Panic: SystemExit: on_close")


def test_a_thousand_panics(hostile_rig: Rig) -> None:
    rig = hostile_rig
    _, endpoint = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, "r2d2", None))
    # Of several parsers, each within what its circuit breaker lets it have.
    parsers = [f"raise-{action}" for action in ACTIONS]
    for round_ in range(1000):
        number = (1 << 33) + round_
        parser = parsers[round_ % len(parsers)]
        rig.process.new_connection(rig.instance, number, parser, policy_name=endpoint)
        assert rig.process.io(number, False, False, b"!").error == "result"
        rig.process.close(number)
    assert len(statuses(rig, endpoint)) == 1000
