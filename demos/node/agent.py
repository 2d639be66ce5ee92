"""An agent in the node of a lab, and the command line that speaks to it.

Everything that it keeps is in the lab's folder, its maps in a BPF file system of the lab's own;
so several of them may run on a machine, and nothing of them is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from bpf.checks import all_checks
from demos.namespaces import NODE_IPV4, Endpoint, Lab
from demos.servers.maven import CACHE, Missing
from node.errors import SetupError

ROOT = Path(__file__).parents[2]
PROXYLIB = (sys.executable, "-m", "node")

PROGRAMS = CACHE / "bpf"
"""Compiled programs, for all agents of this checkout."""

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
LOG_TIMEOUT = 5.0
"""Seconds that an entry may take to come out of the monitor."""

Entry = dict[str, Any]

_TRACES = (
    "tc qdisc show",
    "ip -4 rule show",
    "ip -6 rule show",
    "ip -4 route show table 2004",
    "ip -6 route show table 2004",
)
"""Commands that show what the agent does to the kernel."""


class NodeAgent:
    """``proxylib agent`` in the node of `lab`, as a process. flags: more of its options.

    It starts and ends with a ``with`` block; what it has told the kernel and its Envoy live
    on until the lab ends.
    """

    def __init__(self, lab: Lab, *flags: object) -> None:
        self.lab = lab
        self.flags = flags
        self.state_dir = lab.folder / "state"
        self.run_dir = lab.folder / "run"
        self.socket = self.run_dir / "proxylib.sock"
        self.bpf_root = lab.bpffs() / "proxylib"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = lab.folder / "agent.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said since it was started last."""
        return self._log.read_text(errors="replace")

    def places(self) -> tuple[object, ...]:
        """The options that say where everything is."""
        return (
            *("--state-dir", self.state_dir),
            *("--run-dir", self.run_dir),
            *("--bpf-root", self.bpf_root),
        )

    def start(self, *flags: object) -> None:
        """Start it, and wait until it is ready.

        Raises Missing where its data path cannot be had, SetupError if it does not get there.
        """
        _check_machine(self.bpf_root)
        words = ("agent", "--json", *self.places(), "--datapath", "veth", "--node-name", "node")
        words = (*words, "--node-ip", NODE_IPV4, "--bpf-cache", PROGRAMS, *self.flags, *flags)
        with self._log.open("wb") as output:
            self._process = self.lab.node.popen(
                *PROXYLIB, *map(str, words), cwd=ROOT, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_TIMEOUT
        while '"event": "ready"' not in self.log:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SetupError(f"the agent does not start:\n{self.log[-3000:]}")
            time.sleep(0.02)

    def stop(self) -> int:
        """End it in order; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_TIMEOUT)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def proxylib(
        self, *words: object, stdin: str | None = None, status: int | None = 0, timeout: float = 60
    ) -> str:
        """What a command prints. Raises SetupError for another exit status (None: any)."""
        done = self.lab.node.run(
            *("env", f"PROXYLIB_SOCKET={self.socket}", f"PROXYLIB_BPF_ROOT={self.bpf_root}"),
            *PROXYLIB,
            *map(str, words),
            input=stdin,
            cwd=ROOT,
            timeout=timeout,
        )
        if status is not None and done.returncode != status:
            said = f"{done.stdout}{done.stderr}".strip()
            command = " ".join(map(str, words))
            raise SetupError(f"proxylib {command}: exit status {done.returncode}: {said}")
        return done.stdout

    def add(self, endpoint: Endpoint, *labels: str, options: Sequence[str] = ()) -> int:
        """Make it an endpoint, by its namespace alone; its number."""
        given = [word for label in labels for word in ("--label", label)]
        words = ("endpoint", "add", "--netns", endpoint.netns, *given, *options)
        return int(self.proxylib(*words))

    def cleanup(self) -> str:
        """``proxylib agent cleanup``: what it prints."""
        return self.proxylib("agent", "cleanup", *self.places())

    def envoys(self) -> list[int]:
        """The Envoys of the node and of its endpoints, by process id."""
        everywhere = (self.lab.node, *self.lab)
        return [pid for place in everywhere for pid in place.pids() if _is_envoy(pid)]

    def left(self) -> list[str]:
        """What there is of the agent in the kernel: filters, rules, routes, pins, Envoys."""
        found = [f"envoy {pid}" for pid in self.envoys()]
        found += [str(path) for path in self.bpf_root.rglob("*")]
        for place in (self.lab.node, *self.lab):
            found += [
                f"{place.name}: {line}"
                for command in _TRACES
                for line in place.run(*command.split()).stdout.splitlines()
                if "clsact" in line or "2004" in line or "table" in command
            ]
        return found

    @contextmanager
    def monitor(self, kind: str = "l7") -> Iterator[Monitor]:
        """``proxylib monitor --json`` of one type, as long as the block lasts."""
        process = self.lab.node.popen(
            *("env", f"PROXYLIB_SOCKET={self.socket}", *PROXYLIB),
            *("monitor", "--json", "--type", kind),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        monitor = Monitor(process)
        try:
            monitor.wait_ready()
            yield monitor
        finally:
            process.terminate()
            process.wait()
            monitor.join()


class Monitor:
    """What the monitor has printed, in order; a thread reads it, a story looks it up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.entries: list[Entry] = []
        self._process = process
        self._read = 0
        self._started = False
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                entry = json.loads(line)
                with self._more:
                    if entry["type"] == "start":
                        self._started = True
                    else:
                        self.entries.append(entry)
                    self._more.notify_all()

    def join(self) -> None:
        self._thread.join()

    def wait_ready(self) -> None:
        """Wait until nothing is missed any more."""
        with self._more:
            if not self._more.wait_for(lambda: self._started, START_TIMEOUT):
                raise SetupError("proxylib monitor does not start")

    def next(self, matches: Callable[[Entry], bool], timeout: float = LOG_TIMEOUT) -> Entry | None:
        """The next entry for which `matches`, skipping others; None if none comes."""
        deadline = time.monotonic() + timeout
        with self._more:
            while True:
                while self._read < len(self.entries):
                    entry = self.entries[self._read]
                    self._read += 1
                    if matches(entry):
                        return entry
                if not self._more.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def request_of(self, address: str) -> Entry | None:
        """The next decision about a request that came from `address`."""
        return self.next(
            lambda entry: (
                entry.get("kind") == "request"
                and entry["source"]["address"].rpartition(":")[0].strip("[]") == address
            )
        )


def _is_envoy(pid: int) -> bool:
    try:
        return "envoy" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False


def _check_machine(root: Path) -> None:
    """Raises Missing with what the machine lacks for a data path, and how to get it."""
    lacking = [check for check in all_checks(root) if check.needed and not check.ok]
    if lacking:
        raise Missing("; ".join(f"{check.what}: {check.hint}" for check in lacking))
