"""Drives host.c: a C host of the library in its own process, from Python.

`HostProcess` speaks host.c's commands. `CHost` is one connection in it, with the
interface of `proxylib.testing.Host`, so that a dialogue test runs at both levels;
`Rig` is what such connections share: process, module instance, policy server, log.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxylib import EntryType, FilterResult
from proxylib.native import library_path
from proxylib.proto import accesslog_pb2, npds_pb2
from proxylib.testing import HostClosed, LogRecord
from tests.native.services import LogSocket, PolicyServer, network_policy

SOURCE = Path(__file__).with_name("host.c")
CLIENT_ID = 100
CLIENT = "10.0.0.2:34567"


def compile_host(directory: Path) -> Path:
    """Build host.c; returns the program."""
    program = directory / "host"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([*command, "-o", program, SOURCE, "-ldl"], check=True)
    return program


def to_hex(data: bytes | str) -> str:
    return (data.encode() if isinstance(data, str) else data).hex() or "-"


def from_hex(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)


class HostDied(Exception):
    """The host process ended in the middle of a command; the text is its stderr."""


@dataclass(frozen=True, slots=True)
class Call:
    """One OnData call that the host made."""

    reply: bool
    end_stream: bool
    size: int
    result: FilterResult
    ops: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """What came of bytes that arrived at the host. `error`: why it closed, or empty."""

    error: str
    out: tuple[bytes, bytes]
    calls: tuple[Call, ...]


class HostProcess:
    """A running host with the library loaded."""

    def __init__(
        self,
        program: Path,
        stderr: Path,
        *,
        library: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._stderr = stderr
        with stderr.open("wb") as sink:
            self._process = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=None if env is None else dict(env),
                cwd=cwd,
                text=True,
            )
        self.pid = self._process.pid
        loaded, _ = self.command("load", to_hex(str(library or library_path())))
        if loaded != "ok":
            self.kill()
            raise HostDied(loaded)

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def command(self, *words: object) -> tuple[str, tuple[Call, ...]]:
        """Run one command; returns its answer and the OnData calls made for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise HostDied(self._death()) from error
        calls = []
        for line in self._process.stdout:
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "=":
                return rest, tuple(calls)
            calls.append(_call(rest))
        raise HostDied(self._death())

    def open_module(self, params: Sequence[tuple[str, str]], *, debug: bool = False) -> int:
        words = [to_hex(text) for pair in params for text in pair]
        return int(self.command("open-module", int(debug), len(params), *words)[0])

    def close_module(self, instance: int) -> None:
        self.command("close-module", instance)

    def new_connection(
        self,
        instance: int,
        connection: int,
        parser: str,
        *,
        policy_name: str,
        ingress: bool = True,
        src_id: int = CLIENT_ID,
        dst_id: int = 1,
        src_addr: str = CLIENT,
        dst_addr: str = "10.0.0.1:80",
    ) -> FilterResult:
        strings = map(to_hex, (parser, src_addr, dst_addr, policy_name))
        ids = (instance, connection, int(ingress), src_id, dst_id)
        return FilterResult(int(self.command("new", *ids, *strings)[0]))

    def io(self, connection: int, reply: bool, end: bool, *slices: bytes) -> Event:
        """Bytes arrive, in one event, scattered over `slices`."""
        words = [to_hex(piece) for piece in slices if piece]
        answer, calls = self.command("io", connection, int(reply), int(end), *words)
        error, orig, back = answer.split(" ")
        return Event("" if error == "ok" else error, (from_hex(orig), from_hex(back)), calls)

    def on_data(self, connection: int, reply: bool, end: bool, data: bytes = b"") -> Call:
        """One bare OnData call, for any connection id."""
        _, calls = self.command("raw", connection, int(reply), int(end), to_hex(data))
        return calls[0]

    def threads(
        self,
        count: int,
        rounds: int,
        instance: int,
        first_id: int,
        parser: str,
        *,
        policy_name: str,
        request: bytes,
        dst_addr: str = "10.0.0.1:80",
        leak: bool = False,
    ) -> Event:
        """`count` threads open, feed and close `rounds` connections each.

        The error is "different-output" unless all of them had the output of the first.
        """
        strings = map(to_hex, (parser, CLIENT, dst_addr, policy_name, request))
        answer, _ = self.command("threads", count, rounds, int(leak), instance, first_id, *strings)
        error, orig, back = answer.split(" ")
        return Event("" if error == "ok" else error, (from_hex(orig), from_hex(back)), ())

    def close(self, connection: int) -> None:
        self.command("close", connection)

    def unload(self) -> str:
        """dlclose; returns "ok" or the error."""
        return self.command("unload")[0]

    def exit(self, code: int = 0, timeout: float = 20) -> int:
        """Have the host call exit(); returns the status of the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"exit {code}\n")
        return self._end(timeout)

    def end(self, timeout: float = 20) -> int:
        """Let the host return from main; returns the status of the process."""
        return self._end(timeout)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._end(5)

    def _end(self, timeout: float) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(timeout)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()

    def _death(self) -> str:
        status = self._process.wait(10)
        return f"host ended with status {status}: {self.stderr}"


def _call(line: str) -> Call:
    reply, end, size, result, *ops = line.split(" ")
    pairs = (op.split(":") for op in ops)
    return Call(
        reply == "1",
        end == "1",
        int(size),
        FilterResult(int(result)),
        tuple((int(op), int(n)) for op, n in pairs),
    )


class Rig:
    """A host process whose module instance has a policy server and a log socket."""

    def __init__(self, program: Path, directory: Path, *, library: Path | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._policies: dict[str, npds_pb2.NetworkPolicy] = {}
        self._numbers = itertools.count(1)
        self.server = PolicyServer(directory / "xds.sock")
        self.log = LogSocket(directory / "log.sock")
        self.process = HostProcess(program, directory / "host.stderr", library=library)
        self.params = [
            ("access-log-path", str(self.log.path)),
            ("xds-path", str(self.server.path)),
            ("node-id", "test"),
        ]
        self.instance = self.process.open_module(self.params)
        if not self.instance:
            raise HostDied(f"OpenModule refused {self.params}: {self.process.stderr}")

    def close(self) -> None:
        self.process.kill()
        self.server.close()
        self.log.close()

    def endpoint(self) -> tuple[int, str]:
        """A connection id and an endpoint address that nobody has used yet."""
        number = next(self._numbers)
        return number, f"10.1.{number >> 8}.{number & 255}"

    def set_policy(self, endpoint: str, policy: npds_pb2.NetworkPolicy | None) -> None:
        """Replace the policy of one endpoint; returns when it is in force."""
        before = dict(self._policies)
        self._policies.pop(endpoint, None)
        if policy is not None:
            self._policies[endpoint] = policy
        try:
            self.server.publish(list(self._policies.values()))
        except Exception:
            self._policies = before
            raise

    def entries(self, endpoint: str) -> list[accesslog_pb2.LogEntry]:
        """The log of an endpoint so far.

        The library sends it in the background, in order: an entry made now marks the end.
        """
        number, marker = self.endpoint()
        self.process.new_connection(
            self.instance, number, "r2d2", policy_name=marker, dst_addr=f"{marker}:80"
        )
        self.process.io(number, False, False, b"RESET\r\n")
        self.process.close(number)
        self.log.wait(lambda entry: entry.policy_name == marker, "the end of the log")
        return [entry for entry in self.log.entries if entry.policy_name == endpoint]


class CHost:
    """`proxylib.testing.Host` over the C ABI."""

    def __init__(
        self,
        rig: Rig,
        parser: str,
        rules: Sequence[Mapping[str, str]] | None = None,
        *,
        deny: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._rig = rig
        self._out = (bytearray(), bytearray())
        self.calls: list[Call] = []
        """Every OnData call so far."""
        self.closed = False
        self.error = ""
        """Why the host closed the connection."""
        self.id, self.endpoint = rig.endpoint()
        rig.set_policy(self.endpoint, network_policy(self.endpoint, parser, rules, deny=deny))
        result = rig.process.new_connection(
            rig.instance,
            self.id,
            parser,
            policy_name=self.endpoint,
            dst_addr=f"{self.endpoint}:80",
        )
        if result == FilterResult.UNKNOWN_PARSER:
            raise LookupError(f"no parser {parser!r}")
        if result != FilterResult.OK:
            raise HostClosed(f"OnNewConnection: {result!r}")

    @property
    def ops(self) -> list[tuple[int, int]]:
        """Every op so far, in order."""
        return [op for call in self.calls for op in call.ops]

    @property
    def log(self) -> list[LogRecord]:
        return [
            LogRecord(EntryType(entry.entry_type), *_l7(entry), entry.latency)
            for entry in self._rig.entries(self.endpoint)
        ]

    def set_policy(self, parser: str, rules: Sequence[Mapping[str, str]] | None) -> None:
        """Replace the policy under the live connection."""
        self._rig.set_policy(self.endpoint, network_policy(self.endpoint, parser, rules))

    def client(self, *chunks: bytes, end: bool = False) -> bytes:
        """Feed request bytes; returns what reached the server because of them."""
        return self._feed(False, chunks, end)

    def server(self, *chunks: bytes, end: bool = False) -> bytes:
        """Feed reply bytes; returns what reached the client because of them."""
        return self._feed(True, chunks, end)

    def take(self, reply: bool) -> bytes:
        """What has gone out in a direction since it was last read."""
        taken = bytes(self._out[reply])
        self._out[reply].clear()
        return taken

    def close(self) -> None:
        """End the connection and forget its policy."""
        self._rig.process.close(self.id)
        self._rig.set_policy(self.endpoint, None)

    def _feed(self, reply: bool, chunks: Sequence[bytes], end: bool) -> bytes:
        for index, chunk in enumerate(chunks or (b"",)):
            if self.closed:
                raise HostClosed("the connection is closed")
            last = index == max(len(chunks), 1) - 1
            self.feed(reply, end and last, chunk)
        return self.take(reply)

    def feed(self, reply: bool, end: bool, *slices: bytes) -> Event:
        """One event whose bytes are scattered over `slices`."""
        event = self._rig.process.io(self.id, reply, end, *slices)
        self.calls += event.calls
        for mine, new in zip(self._out, event.out, strict=True):
            mine += new
        if event.error:
            self.closed, self.error = True, event.error
        return event


_HTTP_VERSIONS = ("HTTP/1.0", "HTTP/1.1", "HTTP/2")


def _l7(entry: accesslog_pb2.LogEntry) -> tuple[str, dict[str, object]]:
    """The protocol's name and the fields, as a parser has given them."""
    kind = entry.WhichOneof("l7")
    if kind not in ("http", "kafka"):
        return entry.generic_l7.proto, dict(entry.generic_l7.fields)
    fields: dict[str, object] = {}
    for field, value in getattr(entry, kind).ListFields():
        if field.name == "fields":
            fields |= dict(value)
        elif field.name == "topics":
            fields["topics"] = tuple(topic.encode() for topic in value)
        elif field.name.endswith("headers"):
            fields[field.name] = tuple((pair.key.encode(), pair.value.encode()) for pair in value)
        elif field.name != "http_protocol":
            fields[field.name] = value
    if kind == "http":
        fields["protocol"] = _HTTP_VERSIONS[entry.http.http_protocol]
    return kind, fields
