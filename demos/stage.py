"""What the stories share: addresses, small servers, and the table of what happened.

Every address is in one /24 of the loopback network, so that each client has an
address (and with it an identity) of its own while ports stay as the policies say.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from node.address import Address, check_listen
from node.errors import NodeError, SetupError
from node.run import Event, Proxy, ProxyConfig
from proxylib.accesslog import entry_to_json
from proxylib.errors import ProxylibError
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry

HERE = Path(__file__).parent
ENDPOINTS = HERE / "rebel-endpoints.yaml"

NETWORK = "127.10.0."
"""As in the endpoints file; another one is taken if its ports are in use."""

_COLORS = {"allowed": "green", "denied": "yellow", "closed": "yellow"}

LOG_TIMEOUT = 5.0
"""Seconds an entry may take to arrive. The library sends it within milliseconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that somebody tried."""

    who: str
    what: str
    expected: str
    observed: str
    log: str = ""

    @property
    def as_expected(self) -> bool:
        return self.expected == self.observed


@dataclass
class Stage:
    """Where the stories are told: the network, and the rows so far."""

    network: str = NETWORK
    rows: list[Row] = field(default_factory=list)

    def address(self, host: int, port: int) -> Address:
        return Address(f"{self.network}{host}", port)

    @contextmanager
    def endpoints(self) -> Iterator[Path]:
        """The endpoints file, for the network that we are in."""
        if self.network == NETWORK:
            yield ENDPOINTS
            return
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(ENDPOINTS.read_text().replace(NETWORK, self.network))
            file.flush()
            yield Path(file.name)

    def check(self, who: str, what: str, expected: object, observed: object, log: str = "") -> None:
        """Compare, keep the row, and print it."""
        row = Row(who, what, str(expected), str(observed), log)
        self.rows.append(row)
        observed = click.style(f"{row.observed:8}", fg=_COLORS.get(row.observed))
        mark = click.style("ok", fg="green") if row.as_expected else click.style("WRONG", fg="red")
        click.echo(f"  {who:18} {what:34} {row.expected:8}  {observed}  {mark}  {log}".rstrip())

    def title(self, text: str) -> None:
        click.echo("\n" + click.style(text, bold=True))

    def table(self, what: str = "what") -> None:
        """Head the rows that follow. what: what they are about."""
        head = f"  {'who':18} {what:34} {'expected':8}  {'observed':8}      access log"
        click.echo(click.style(head, underline=True))

    def say(self, text: str) -> None:
        click.echo(f"  {text}")

    def finish(self) -> int:
        """Sum up. Returns the exit status: 0 only if all was as expected."""
        wrong = [row for row in self.rows if not row.as_expected]
        if wrong or not self.rows:
            click.echo(
                click.style(f"\n{len(wrong)} of {len(self.rows)} not as expected:", fg="red")
            )
            for row in wrong:
                click.echo(f"  {row.who} {row.what}: {row.observed}, expected {row.expected}")
            return 1
        click.echo(click.style(f"\nAll {len(self.rows)} as expected.", fg="green", bold=True))
        return 0


PLACES = ((1, 11211), (5, 4040), (8, 9042), (10, 9092))
"""Host and port of the servers; the ports stand in the policies."""


def run_stories(*stories: Callable[[Stage], None]) -> int:
    """Tell `stories` on one stage; the exit status."""
    try:
        stage = Stage(find_network(PLACES))
        for tell in stories:
            tell(stage)
    except (NodeError, ProxylibError) as error:
        click.echo(f"{click.style('error:', fg='red')} {error}", err=True)
        return 1
    return stage.finish()


def find_network(places: Sequence[tuple[int, int]]) -> str:
    """A loopback /24 in which every (host, port) of `places` is free.

    Raises SetupError if a port is taken on all addresses of the machine.
    """
    failure: SetupError | None = None
    for number in range(32):
        network = f"127.10.{number}."
        try:
            for host, port in places:
                check_listen(Address(f"{network}{host}", port))
        except SetupError as error:
            failure = error
            continue
        return network
    assert failure is not None
    raise failure


class Log:
    """The access log of a story, in order; a thread fills it, the story reads it."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self._read = 0
        self._more = threading.Condition()

    def add(self, entries: Sequence[LogEntry]) -> None:
        with self._more:
            self.entries += entries
            self._more.notify_all()

    def next(self, matches: Callable[[LogEntry], bool]) -> LogEntry | None:
        """The next entry for which `matches`, skipping others; None if none comes."""
        deadline = time.monotonic() + LOG_TIMEOUT
        with self._more:
            while True:
                while self._read < len(self.entries):
                    entry = self.entries[self._read]
                    self._read += 1
                    if matches(entry):
                        return entry
                if not self._more.wait(deadline - time.monotonic()):
                    return None

    def request_of(self, host: str) -> LogEntry | None:
        """The next decision about a request that came from address `host`."""
        return self.next(
            lambda entry: (
                entry.entry_type != EntryType.Response
                and entry.source_address.rpartition(":")[0] == host
            )
        )


def brief(entry: LogEntry | None) -> str:
    """What an entry says about the request itself."""
    if entry is None:
        return "nothing in the log"
    shown = entry_to_json(entry)
    fields = " ".join(f"{key}={value}" for key, value in shown["fields"].items())
    return f"{shown['type'].upper()} {shown['proto']} {fields}"


def confirmed(observed: str, entry: LogEntry | None) -> str:
    """`observed`, if the log tells the same; else both."""
    logged = None if entry is None else entry_to_json(entry)["verdict"]
    agrees = logged == ("allowed" if observed == "allowed" else "denied")
    return observed if agrees else f"{observed}, logged as {logged}"


@contextmanager
def proxy(stage: Stage, config: ProxyConfig) -> Iterator[tuple[Proxy, Log]]:
    """A proxy whose start is narrated and whose log is kept."""
    log = Log()

    def narrate(event: Event) -> None:
        stage.say(click.style(event.message, dim=True))

    with Proxy(config, on_event=narrate, on_entries=log.add) as running:
        stage.table()
        yield running, log


def connect(source: str, to: Address) -> socket.socket:
    """A TCP connection from address `source`."""
    return socket.create_connection((to.host, to.port), timeout=5, source_address=(source, 0))


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        answer: Callable[[bytes], bytes] = self.server.answer  # type: ignore[attr-defined]
        for line in self.rfile:
            self.wfile.write(answer(line))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def line_server(address: Address, answer: Callable[[bytes], bytes]) -> Iterator[Address]:
    """A TCP server that answers each line; yields its address (port 0: a free one)."""
    with _Server((address.host, address.port), _Handler) as server:
        server.answer = answer  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield Address(address.host, server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
