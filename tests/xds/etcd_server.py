"""A real etcd of one member, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xds.etcd_client import EtcdClient, EtcdError

needs_etcd = pytest.mark.skipif(
    # Where CI is set nothing is left out: there the tests fail without it.
    shutil.which("etcd") is None and not os.environ.get("CI"),
    reason="no etcd: make test installs it",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(check: Callable[[], bool], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Etcd:
    """A server of one member that can be killed, started again, and robbed of its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address, self._peer = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        urls = (f"http://{self.address}", f"http://{self._peer}")
        command = ["etcd", "--data-dir", str(self._folder / "data"), "--name", "m"]
        command += ["--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]]
        command += ["--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]]
        command += ["--initial-cluster", f"m={urls[1]}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        client = EtcdClient([self.address])

        def answers() -> bool:
            try:
                client.range(b"x")
            except EtcdError:
                return False
            return True

        eventually(answers, "etcd does not answer")
        client.close()

    def kill(self, *, lose_data: bool = False) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if lose_data:
            shutil.rmtree(self._folder / "data")

    def stored(self) -> dict[str, str]:
        client = EtcdClient([self.address])
        found = {kv.key.decode(): kv.value.decode() for kv in client.range(b"proxylib/").kvs}
        client.close()
        return found
