"""A host in Python: it does with a parser's ops what Envoy's filter does.

`Host` runs one connection. Feed it bytes in either direction and read what comes
out on both sides, the ops, and the log.  It is strict where the C host is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxylib import limits
from proxylib.connection import Connection
from proxylib.errors import ParserError
from proxylib.instance import destination_port
from proxylib.message import Properties, check_value
from proxylib.ops import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    PASS,
    WAIT,
    EntryType,
    ErrorCode,
    FilterResult,
    Op,
)
from proxylib.parser import ParserFactory
from proxylib.policy import PolicyMap, compile_policies
from proxylib.proto import npds_pb2 as npds
from proxylib.rawloop import MAX_OPS
from proxylib.recording import Facts
from proxylib.registry import get_parser_factory
from proxylib.sandbox import OnError, Settings

ENDPOINT = "10.0.0.1"
CLIENT_ID = 100
PATIENT = Settings(time_budget=5.0)


_FACTS = Facts(
    parser="",
    src_id=CLIENT_ID,
    dst_id=1,
    src_addr="10.0.0.2:34567",
    dst_addr=f"{ENDPOINT}:80",
    policy_name=ENDPOINT,
)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One access-log entry, as the parser gave it."""

    entry_type: EntryType
    """Request, Response or Denied."""
    proto: str
    """The protocol's name, the parser's if it gave none."""
    fields: dict[str, object]
    """The properties, as the parser gave them: not cut, not escaped."""
    latency: int = field(default=0, compare=False)
    """Nanoseconds between a request and this response of it."""


class HostClosed(Exception):
    """The connection was closed by the engine; bytes cannot be fed any more."""


@dataclass
class _Instance:
    policy: PolicyMap


@dataclass
class _Direction:
    """What the host remembers about one direction between calls."""

    held: bytes = b""
    need: int = 0
    passing: int = 0
    dropping: int = 0
    out: bytearray = field(default_factory=bytearray)


def policy_map(
    parser: str,
    rules: Sequence[Mapping[str, str]] | None,
    *,
    deny: Sequence[Mapping[str, str]] = (),
    port: int = 80,
    endpoint: str = ENDPOINT,
) -> PolicyMap:
    """A policy for one endpoint and port. `rules` None: everything is allowed."""
    policy = npds.NetworkPolicy(endpoint_ips=[endpoint], endpoint_id=1)
    entry = policy.ingress_per_port_policies.add(port=port)
    rule = entry.rules.add()
    if rules is not None or deny:
        rule.l7_proto = parser
        for pairs in [{}] if rules is None else rules:
            rule.l7_rules.l7_allow_rules.add(rule=dict(pairs))
        for pairs in deny:
            rule.l7_rules.l7_deny_rules.add(rule=dict(pairs))
    return compile_policies([policy.SerializeToString()], get_parser_factory)


class Host:
    """One connection under the parser named `parser`, with the policy `rules`.

    rules: L7 rules as a policy document has them; None allows everything.
    factory: a factory to use in place of the registered one.
    policy, facts: a whole policy in place of `rules`, and the connection that it is
    to judge.
    settings: the sandbox of the redirect; the default has a long time budget, since a
    call may see all the bytes of a test at once.
    """

    def __init__(
        self,
        parser: str,
        rules: Sequence[Mapping[str, str]] | None = None,
        *,
        deny: Sequence[Mapping[str, str]] = (),
        factory: ParserFactory | None = None,
        policy: PolicyMap | None = None,
        facts: Facts = _FACTS,
        settings: Settings = PATIENT,
    ) -> None:
        self.log: list[LogRecord] = []
        """Every entry so far, in order."""
        self.ops: list[tuple[int, int]] = []
        """Every op so far, in order."""
        self.closed = False
        """Whether the engine has closed the connection."""
        self._directions = (_Direction(), _Direction())
        self._settled: tuple[Op, Op] | None = None
        found = factory or get_parser_factory(parser)
        if found is None:
            raise LookupError(f"no parser {parser!r}")
        self.instance = _Instance(policy or policy_map(parser, rules, deny=deny))
        self.connection = Connection(
            self.instance,
            parser,
            ingress=facts.ingress,
            src_id=facts.src_id,
            dst_id=facts.dst_id,
            src_addr=facts.src_addr,
            dst_addr=facts.dst_addr,
            port=destination_port(facts.dst_addr) or 0,
            policy_name=facts.policy_name,
            log=self._log,
            settings=settings,
        )
        made = found.create(self.connection)
        if made is None:
            raise HostClosed("the parser refused the connection")
        self.connection.attach(made)
        self.connection.made_by(found, made)
        self.on_data = self.connection.on_data
        """The engine's call of the parser, for those who want to look between."""

    def set_policy(self, parser: str, rules: Sequence[Mapping[str, str]] | None) -> None:
        """Replace the policy under the live connection."""
        self.instance.policy = policy_map(parser, rules)

    def client(self, *chunks: bytes, end: bool = False) -> bytes:
        """Feed request bytes, in these chunks; returns what reached the server because of them.

        end: the client's stream ends behind them.
        Raises HostClosed if the connection is closed before they are.
        """
        return self._feed(False, chunks, end)

    def server(self, *chunks: bytes, end: bool = False) -> bytes:
        """Feed reply bytes; returns what reached the client because of them. As `client`."""
        return self._feed(True, chunks, end)

    def take(self, reply: bool) -> bytes:
        """What has gone out in a direction since it was last read.

        reply: True for what the client got: error replies to what `client` fed.
        """
        out = self._directions[reply].out
        taken = bytes(out)
        out.clear()
        return taken

    def _log(
        self, entry_type: int, fields: Properties, proto: str = "", latency: int = 0, /
    ) -> None:
        for key, value in fields.items():
            check_value(key, value)
        name = proto or self.connection.parser_name
        self.log.append(LogRecord(EntryType(entry_type), name, dict(fields), latency))

    def _feed(self, reply: bool, chunks: Sequence[bytes], end: bool) -> bytes:
        for index, chunk in enumerate(chunks or (b"",)):
            if self.closed:
                raise HostClosed("the connection is closed")
            self._on_io(reply, chunk, end and index == max(len(chunks), 1) - 1)
            self._flush(not reply)
        return self.take(reply)

    def _flush(self, reply: bool) -> None:
        """Send what was injected into a direction that is at a frame boundary."""
        direction, buffer = self._directions[reply], self.connection.injected[reply]
        if buffer and not direction.passing and not direction.dropping:
            direction.out += buffer
            buffer.clear()

    def _on_io(self, reply: bool, data: bytes, end: bool) -> None:
        direction = self._directions[reply]
        if self._settled is not None:
            self._flush(reply)
            if self._settled[reply] == PASS:
                direction.out += data
            return
        if direction.passing:
            taken = min(direction.passing, len(data))
            direction.out += data[:taken]
            direction.passing -= taken
            data = data[taken:]
        elif direction.dropping:
            taken = min(direction.dropping, len(data))
            direction.dropping -= taken
            data = data[taken:]
        if direction.passing or direction.dropping:
            return
        self._flush(reply)
        data = direction.held + data
        direction.held = b""
        if len(data) < direction.need and not end:
            direction.held = data
            return
        direction.need = 0
        self._run(direction, reply, data, end)
        if end:
            # What the parser has not passed by the end of the stream never passes.
            direction.held = b""

    def _run(self, direction: _Direction, reply: bool, data: bytes, end: bool) -> None:
        while True:
            ops: list[int] = []
            result = self.on_data(reply, end, [data] if data else [], ops)
            pairs = list(zip(ops[::2], ops[1::2], strict=False))
            self.ops += pairs
            terminal = False
            try:
                for op, n in pairs:
                    if result != FilterResult.OK and op not in (PASS, DROP, INJECT):
                        break
                    if terminal:
                        raise ParserError("an op after a terminal op")
                    data, terminal = self._apply(direction, reply, data, op, n)
                if len(ops) % 2:
                    raise ParserError("an op without its length")
            except Exception as error:
                # Of a call that has failed, what was decided before counts, as far as it can.
                if result == FilterResult.OK:
                    result = self.connection.panic(error)
            if result != FilterResult.OK:
                self._fail(reply, data)
                return
            if pairs and pairs[-1][0] == WAIT:
                self.connection.block()
                continue
            if terminal or self.connection.batch or len(pairs) < MAX_OPS:
                direction.held = data
                return

    def _fail(self, reply: bool, data: bytes) -> None:
        """The parser has failed, with `data` left: do what `on_error` asks for."""
        on_error = self.connection.on_error
        if on_error == OnError.CLOSE or (on_error == OnError.DENY and reply):
            self._close(reply)
            return
        mine = PASS if on_error == OnError.PASS_THROUGH else DROP
        self._settled = (PASS, mine) if reply else (mine, PASS)
        self._flush(not reply)
        other = self._directions[not reply]
        other.out += other.held
        other.held = b""
        if mine == PASS:
            self._directions[reply].out += data

    def _close(self, reply: bool) -> None:
        self.closed = True
        self._flush(not reply)
        self.connection.close()

    def _apply(
        self, direction: _Direction, reply: bool, data: bytes, op: int, n: int
    ) -> tuple[bytes, bool]:
        """Carry out one op; returns the data left, and whether the op is terminal."""
        numbers: tuple[object, object] = (op, n)  # what a parser has said
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"ops hold integers, not {op!r}, {n!r}")
        if not 0 < n <= limits.MAX_OP_BYTES:
            raise ParserError(f"op {op} with invalid length {n}")
        if op == MORE:
            direction.need = len(data) + n
            if direction.need > limits.MAX_HELD:
                raise ParserError(f"more than limits.MAX_HELD bytes wanted: {n}")
            return data, True
        if op == PASS:
            direction.out += data[:n]
            direction.passing = max(n - len(data), 0)
            return data[n:], n > len(data)
        if op == DROP:
            direction.dropping = max(n - len(data), 0)
            return data[n:], n > len(data)
        if op == INJECT:
            buffer = self.connection.injected[reply]
            if n > len(buffer):
                raise ParserError(f"INJECT {n} of {len(buffer)} injected bytes")
            direction.out += buffer[:n]
            del buffer[:n]
            return data, False
        if op == WAIT:
            return data, True
        if op != ERROR:
            raise ParserError(f"unknown op {op}")
        if n != ErrorCode.CLOSE:
            raise ParserError(f"error code {n}")
        self._close(reply)
        return data, True
