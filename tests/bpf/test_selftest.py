"""The self-test passes on this kernel, and each of its checks fails where its promise is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import compiler, selftest, sockmap, sockmap_programs
from bpf.selftest import Check, SelfTest

ROOT = Path(__file__).parents[2]

UNREAD = [("return COUNT_UNREAD;", ";"), ("return COUNT_SPLICED;", ";")]
MANY = ("* (u64)MESSAGE > room", "* (u64)MESSAGE > 1 << 30")
BROKEN = {
    # the check that must fail: what is taken out of the program
    "order": [*UNREAD],
    "handshake": [*UNREAD, ("- own->proof) < 0)", "- own->proof) < -9)")],
    "splice": [("return COUNT_SPLICED;", ";")],
    "memory": [("+ size > room", "+ size > 1 << 30"), MANY],
    "many small": [MANY],
    "blocking": [("if (!ready) {", "if (0) {"), ("!never_blocks(peer->socket)", "0")],
}


@pytest.fixture
def cgroup(privileged: None) -> Iterator[Path]:
    where = sockmap.cgroup_root() / f"proxylib-test-{os.getpid()}"
    where.mkdir(exist_ok=True)
    yield where
    where.rmdir()


def worker(source: Path, cache: Path, cgroup: Path) -> SelfTest:
    """The checks, with another program in place of ours."""
    code = (
        "import sys; from pathlib import Path; from bpf import selftest_worker, sockmap_programs;"
        "sockmap_programs.SOURCE = Path(sys.argv[1]); selftest_worker.main(*sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, cache, cgroup],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return selftest.decoded(done.stdout)


def test_this_kernel_keeps_its_promises(cache: Path, privileged: None) -> None:
    with subprocess.Popen(["true"]) as gone:
        left_over = sockmap.cgroup_root() / f"{selftest.PREFIX}{gone.pid}"
    left_over.mkdir()
    another = sockmap.cgroup_root() / f"{selftest.PREFIX}{os.getppid()}"
    another.mkdir()
    found = selftest.run(cache, sockmap.cgroup_root())
    assert not left_over.exists()
    another.rmdir()
    assert found.ok, found.refusal
    assert [check.name for check in found.checks if not check.ok and check.required] == []
    assert len(found.checks) == 7
    assert all(check.sentence.endswith(".") for check in found.checks)
    assert not (sockmap.cgroup_root() / f"{selftest.PREFIX}{os.getpid()}").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_seen(name: str, cache: Path, cgroup: Path, tmp_path: Path) -> None:
    text = sockmap_programs.SOURCE.read_text()
    for taken, put in BROKEN[name]:
        assert text.count(taken) == 1
        text = text.replace(taken, put)
    source = tmp_path / "sockmap.c"
    source.write_text(text)
    for header in compiler.PROGRAMS.glob("*.h"):
        (tmp_path / header.name).write_text(header.read_text())
    found = worker(source, cache, cgroup)
    broken = {check.name: check for check in found.checks if not check.ok}
    assert {"many small": "memory"}.get(name, name) in broken
    assert not found.ok
    assert found.refusal.endswith(".")


def test_a_limit_is_no_refusal() -> None:
    limit = Check("limit", False, "A limit.", required=False)
    assert SelfTest((limit,)).ok
    assert SelfTest((limit, Check("order", False, "Bytes swim."))).refusal == "Bytes swim."


def test_a_worker_that_cannot_run_is_a_refusal(
    cache: Path, privileged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "WORKER", "bpf.there_is_none")
    assert "there_is_none" in selftest.run(cache, sockmap.cgroup_root()).refusal
    monkeypatch.undo()
    monkeypatch.setattr(selftest, "SECONDS", 0.001)
    assert "hung" in selftest.run(cache, sockmap.cgroup_root()).refusal
    assert not selftest.run(cache, Path("/proc/no-such-cgroup")).ok


def test_results_travel_as_json() -> None:
    told = SelfTest((Check("a", True, "All is well."), Check("b", False, "Not.", required=False)))
    assert selftest.decoded(selftest.encoded(told)) == told
    for text in ("", "[1]", '[{"name": 1}]', "{"):
        assert not selftest.decoded(text).ok
