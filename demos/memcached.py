"""How the Rebels secure their shared memcached service.

A real memcached behind Envoy; three clients with the labels of the policy try the
same things.  What each may do is a table here, read off the policy by a human.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheClientError, MemcacheError

from demos.stage import HERE, Stage, brief, confirmed, proxy, run_stories
from node.address import Address
from node.errors import SetupError
from node.parsers import choose_parser
from node.run import ProxyConfig

POLICY = HERE / "secure-rebel-alliance-memcache.yaml"
PORT = 11211
SERVER = 1

CLIENTS = {"fleet-maintenance": 2, "fleet-monitoring": 3, "jedi": 4}
"""Who, and the last part of their address."""

START_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """An operation, what it returns if it is allowed, and who may do it."""

    what: str
    do: Callable[[Client], Any]
    result: Any
    allowed: frozenset[str]


def _attempt(what: str, do: Callable[[Client], Any], result: Any, *allowed: str) -> Attempt:
    return Attempt(what, do, result, frozenset(allowed))


WRITER, READER, JEDI = CLIENTS
FLEET, OTHER = "alliance/fleet/xwing", "alliance/base"

ATTEMPTS = (
    _attempt(f"set {FLEET}", lambda c: c.set(FLEET, b"red-5"), True, WRITER, JEDI),
    _attempt(f"get {FLEET}", lambda c: c.get(FLEET), b"red-5", WRITER, READER, JEDI),
    _attempt(f"set {OTHER}", lambda c: c.set(OTHER, b"hoth"), True, JEDI),
    _attempt(f"get {OTHER}", lambda c: c.get(OTHER), b"hoth", JEDI),
    _attempt(
        "get of both, in one request",
        lambda c: c.get_many([FLEET, OTHER]),
        {FLEET: b"red-5", OTHER: b"hoth"},
        JEDI,
    ),
    _attempt("incr alliance/fleet/n", lambda c: c.incr("alliance/fleet/n", 1), 1, WRITER, JEDI),
    _attempt("delete alliance/fleet/n", lambda c: c.delete("alliance/fleet/n"), True, WRITER, JEDI),
    _attempt("flush_all", lambda c: c.flush_all(), True, JEDI),
)


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`."""
    stage.title("The Rebels' memcached (demos/secure-rebel-alliance-memcache.yaml)")
    server = stage.address(SERVER, PORT)
    with memcached(server) as version, stage.endpoints() as endpoints:
        stage.say(f"{version} at {server}")
        config = ProxyConfig(
            choose_parser("memcache"),
            listen=stage.address(SERVER, 0),
            upstream=server,
            policies=(POLICY,),
            endpoints=endpoints,
        )
        direct = client("127.0.0.1", server)
        with proxy(stage, config) as (running, log):
            for who, host in CLIENTS.items():
                source = stage.address(host, 0).host
                for attempt in ATTEMPTS:
                    prepare(direct)
                    before = content(direct)
                    connection = client(source, running.address)
                    expected = "allowed" if who in attempt.allowed else "denied"
                    observed = observe(attempt, connection)
                    if observed == "denied" and content(direct) != before:
                        observed = "denied, and yet memcached has changed"
                    entry = log.request_of(source)
                    observed = confirmed(observed, entry)
                    stage.check(who, attempt.what, expected, observed, brief(entry))
                    connection.close()
        direct.close()


def observe(attempt: Attempt, connection: Client) -> str:
    """What a client sees of an attempt: allowed, denied, or what else happened."""
    try:
        result = attempt.do(connection)
    except MemcacheClientError as error:
        return "denied" if "access denied" in str(error) else f"error: {error}"
    except (MemcacheError, OSError) as error:
        return f"error: {type(error).__name__}: {error}"
    return "allowed" if result == attempt.result else f"answered {result!r}"


def prepare(direct: Client) -> None:
    """What memcached holds before each attempt."""
    direct.set_many({FLEET: b"red-5", OTHER: b"hoth", "alliance/fleet/n": b"0"})


def content(direct: Client) -> dict[str, bytes]:
    """What memcached holds, with the version (cas) of each value."""
    found: dict[str, bytes] = direct.gets_many([FLEET, OTHER, "alliance/fleet/n"])
    return found


def client(source: str, server: Address) -> Client:
    """A pymemcache client whose connections come from address `source`."""
    return Client(
        (server.host, server.port),
        default_noreply=False,
        timeout=5,
        connect_timeout=5,
        socket_module=_SocketsFrom(source),
    )


class _SocketsFrom:
    """The socket module, but its TCP sockets are bound to one source address."""

    def __init__(self, source: str) -> None:
        self._source = source

    def socket(self, *args: Any) -> socket.socket:
        made = socket.socket(*args)
        made.bind((self._source, 0))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


@contextmanager
def memcached(address: Address) -> Iterator[str]:
    """A memcached of our own at `address`; yields its version."""
    binary = shutil.which("memcached")
    if binary is None:
        raise SetupError("no memcached on PATH; install it (Debian: apt install memcached)")
    # It refuses to run as root unless told which user to be.
    command = [binary, "-l", address.host, "-p", str(address.port), "-U", "0", "-u", "nobody"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*command, "-m", "64", "-t", "1"], stderr=errors)
        try:
            probe = client("127.0.0.1", address)
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                try:
                    version = probe.version().decode()
                    break
                except OSError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        errors.seek(0)
                        said = errors.read(2000).decode(errors="replace").strip()
                        raise SetupError(f"memcached does not start: {said or error}") from error
                    time.sleep(0.02)
            probe.close()
            yield f"memcached {version}"
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    raise SystemExit(run_stories(tell))
