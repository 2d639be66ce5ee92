"""Acceleration's self-test: does this kernel keep the promises that `sockmap` builds on?

It takes about two seconds, in a process, a network namespace and a cgroup of its own: nothing
that runs on the machine is touched. `run` starts it (`selftest_worker` is what it starts); an
opt-in is refused with the sentence of the first required check that fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bpf.errors import BpfError

SECONDS = 60.0
"""A self-test that takes longer hangs, which is a result, too."""

PREFIX = "proxylib-selftest-"
"""Of the cgroups' names."""

WORKER = "bpf.selftest_worker"


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. required: without it no endpoint is accelerated; else it is a limit to know."""

    name: str
    ok: bool
    sentence: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found."""

    checks: tuple[Check, ...]

    @property
    def refusal(self) -> str:
        """Why no endpoint may be accelerated here; empty: they may."""
        return next((c.sentence for c in self.checks if c.required and not c.ok), "")

    @property
    def ok(self) -> bool:
        return not self.refusal


def run(cache: Path, cgroup_root: Path) -> SelfTest:
    """Test this kernel. Whatever goes wrong is a check that has failed."""
    sweep(cgroup_root)
    cgroup = cgroup_root / f"{PREFIX}{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        return _failed(f"The self-test cannot make a cgroup in {cgroup_root}: {error.strerror}.")
    try:
        return _run(cache, cgroup)
    finally:
        sweep(cgroup_root)


def sweep(cgroup_root: Path) -> None:
    """Remove our cgroup, and those of processes that were killed in their self-test."""
    for path in cgroup_root.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX)
        if pid == str(os.getpid()) or not Path("/proc", pid).exists():
            with suppress(OSError):  # its last process has not quite ended
                path.rmdir()


def _run(cache: Path, cgroup: Path) -> SelfTest:
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", WORKER, str(cache), str(cgroup)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"The self-test hung for {SECONDS:g} s.")
    if done.returncode != 0:
        return _failed(f"The self-test failed: {done.stderr.strip()[-4000:]}")
    return decoded(done.stdout)


def encoded(test: SelfTest) -> str:
    """As JSON."""
    return json.dumps([asdict(check) for check in test.checks])


def decoded(text: str) -> SelfTest:
    """From JSON; a result that cannot be read is a failure."""
    try:
        return SelfTest(tuple(Check(**told) for told in json.loads(text)))
    except (ValueError, TypeError) as error:
        return _failed(f"The self-test's result cannot be read: {error}.")


def _failed(sentence: str) -> SelfTest:
    return SelfTest((Check("start", False, sentence),))


class Refused(BpfError):
    """An endpoint cannot be accelerated on this machine; the text says why."""
