"""One proxied connection: its parser, inject buffers, policy and log.

Created by the engine for each connection, whatever the host (Envoy, a C host, a
test); closed by it.  Parsers see `matches`, `log`, `inject` and the facts about
the connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from proxylib import limits
from proxylib.asking import Answer, ask
from proxylib.errors import ParserError
from proxylib.logstream import LogStream, audited, no_log
from proxylib.message import Properties
from proxylib.ops import EntryType, FilterResult
from proxylib.parser import BatchParser, Parser, ParserFactory
from proxylib.policy import Decision, PolicyMap
from proxylib.rawloop import run_raw
from proxylib.registry import get_parser_factory, overdue
from proxylib.sandbox import DEFAULTS, OnError, Settings, breaker_of, describe, guarded
from proxylib.sandbox.place import story, text

if TYPE_CHECKING:
    from proxylib.rules import Matcher

logger = logging.getLogger(__name__)


class Tap(Protocol):
    """What a connection needs of what records it (proxylib.tap)."""

    def around(self, parser: Parser, /) -> Parser: ...

    def gone(self) -> None: ...


class Process(Protocol):
    """What a connection needs of the process that its parser is in."""

    @property
    def overdue(self) -> bool: ...


class ConnectionInstance(Protocol):
    """What a connection needs of its module instance."""

    policy: PolicyMap


class Connection:
    """A connection under a parser. Direction ``reply`` is from server to client."""

    __slots__ = (
        "_answers",
        "_decision",
        "_matcher",
        "_plain_log",
        "_policy",
        "batch",
        "breaker",
        "budget",
        "dst_addr",
        "dst_id",
        "factory",
        "ingress",
        "injected",
        "instance",
        "log",
        "made",
        "memory",
        "monotonic_ns",
        "open_audit_log",
        "panicked",
        "parser",
        "parser_name",
        "policy_name",
        "port",
        "process",
        "remote",
        "remote_id",
        "sends_both_ways",
        "settings",
        "src_addr",
        "src_id",
        "tap",
        "unparsed",
        "wake",
    )

    def __init__(
        self,
        instance: ConnectionInstance,
        parser_name: str,
        *,
        ingress: bool,
        src_id: int,
        dst_id: int,
        src_addr: str,
        dst_addr: str,
        port: int,
        policy_name: str,
        log: LogStream,
        settings: Settings = DEFAULTS,
    ) -> None:
        self.instance = instance
        self.parser_name = parser_name
        """The name that the parser is registered under, the policy's ``l7proto``."""
        self.ingress = ingress
        """True if the policy is the destination's (a server's ingress)."""
        self.sends_both_ways = True
        """False under the C ABI: what is injected towards the server while a reply is
        judged goes out with the next request."""
        self.src_id = src_id
        """Numeric security identity of the client; 0 if unknown."""
        self.dst_id = dst_id
        """Numeric security identity of the server; 0 if unknown."""
        self.src_addr = src_addr
        """``ip:port`` or ``[ip6]:port`` of the client."""
        self.dst_addr = dst_addr
        """The same of the original destination."""
        self.port = port
        """Original destination port, 0 to 65535."""
        self.policy_name = policy_name
        """Address of the endpoint whose policy applies."""
        self.injected = (bytearray(), bytearray())
        """Bytes waiting to be sent, for the original and the reply direction."""
        self.parser: Parser | None = None
        self.factory: ParserFactory | None = None
        self.made: Parser | None = None
        """Who made the parser, and what was made."""
        self.batch = False
        self.tap: Tap | None = None
        """What stands around the parsers; None: nothing."""
        self.log = log
        """``log(entry_type, fields, proto="", latency=0)`` writes an access-log entry: an
        `EntryType`, the properties of a message, and of a response the nanoseconds since its
        request. Values longer than limits.MAX_LOG_VALUE are cut, an entry has
        limits.MAX_LOG_ENTRY bytes at most; who reads too slowly loses entries and is told how
        many. Raises TypeError for a value that is none of `Value`. An attribute, not a
        method: natively it is C."""
        self.monotonic_ns = time.monotonic_ns
        """``monotonic_ns()``: the clock for latencies, nanoseconds. The only one of a parser's."""
        self.open_audit_log: Callable[[], LogStream] | None = None
        """Opens the log of what would be denied without audit mode; None: `log` is it."""
        self.settings = settings
        self.budget = _nanoseconds(settings.time_budget or limits.TIME_BUDGET)
        """Nanoseconds that a call into the parser may take."""
        self.memory = settings.memory_budget or limits.MEMORY_BUDGET
        """Bytes that the parser may hold."""
        self.breaker = breaker_of(parser_name)
        self.panicked = False
        self.process: Process | None = None
        """The process that its parser is in; None: this one."""
        self.remote: object | None = None
        """What stands for it natively, and what the connection is called there."""
        self.remote_id = 0
        self.unparsed = False
        """True if everything passes without a parser, since that is taken out."""
        self.wake: Callable[[], None] = nothing
        """Has the host call the parser again after WAIT; from any thread."""
        self._answers: list[Answer] = []
        self._policy: PolicyMap | None = None
        self._plain_log: LogStream | None = None
        """`log` as it was, while the policy is in audit mode."""

    def create(self, factory: ParserFactory) -> FilterResult:
        """Have `factory` make the parser. Done once, by the engine."""
        try:
            parser = guarded(self.budget, factory.create, self)
            if parser is None:
                return FilterResult.POLICY_DROP
            if not isinstance(parser, Parser):
                raise TypeError(f"the factory made a {type(parser).__name__}, not a Parser")
            if self.settings.time_budget is None:
                self.budget = _nanoseconds(parser.time_budget)
            if self.settings.memory_budget is None:
                self.memory = parser.memory_budget
            self.attach(parser)
            self.made_by(factory, parser)
        except BaseException as error:
            return self.panic(error)
        return FilterResult.OK

    def refresh(self) -> bool:
        """There is new code (proxylib.reload): let it take over, if its parser can.

        Returns False if the connection is to be closed, its time being over.
        """
        if not self._overdue():
            return True
        self.log_status(f"Connection closed: parser {self.parser_name!r} has been reloaded")
        return False

    def _overdue(self) -> bool:
        """Whether the old code goes on here, and has had its time."""
        if self.process is not None:
            # Its code is nowhere else, and stays with its process.
            return self.process.overdue
        newest = get_parser_factory(self.parser_name)
        if self.factory is None or newest is None or newest is self.factory:
            return False
        return not self._migrate(newest) and overdue(self.factory)

    def _migrate(self, factory: ParserFactory) -> bool:
        """Have the new version's parser take over from the one there is."""
        old = self.made
        if old is None:
            return False
        try:
            parser = guarded(self.budget, factory.create, self)
            taken = isinstance(parser, Parser) and guarded(self.budget, parser.migrate, old) is True
        except BaseException as error:
            logger.error("the old %s goes on; migrate: %s", self.parser_name, describe(error))
            return False
        if taken:
            self.attach(parser)
            self.made_by(factory, parser)
            self._policy = None
        return taken

    def made_by(self, factory: ParserFactory | None, parser: Parser | None) -> None:
        """Remember who made which parser, so that a reload can find its connections."""
        if self.factory is not None:
            self.factory.connections -= 1
        if factory is not None:
            factory.connections += 1
        self.factory, self.made = factory, parser

    def attach(self, parser: Parser) -> None:
        """Give the connection its parser."""
        if self.tap is not None:
            parser = self.tap.around(parser)
        self.batch = isinstance(parser, BatchParser)
        self.parser = parser

    # What parsers use.

    @property
    def config(self) -> Mapping[str, str]:
        """What the operator has said to the parser: ``config`` of the filter's configuration,
        ``proxylib run --set KEY=VALUE``. Keys and values are the parser's to check."""
        return self.settings.config

    def matches(self, message: Properties) -> bool:
        """Whether the policy in force now allows `message` on this connection.

        Raises KeyError if a rule tests a property that `message` does not have.
        """
        if self._policy is not self.instance.policy:
            self._resolve()
        return self._matcher(message)

    @property
    def logged(self) -> bool:
        """Whether `log` writes anything: what it would be given need not be made otherwise.

        Ask once the policy has been asked: in audit mode, that decides which log it is.
        """
        return self.log is not no_log

    @property
    def matcher(self) -> Matcher:
        """`matches`, resolved: for judging several messages of one chunk.

        Do not keep it across calls: it is bound to the policy of this moment.
        """
        if self._policy is not self.instance.policy:
            self._resolve()
        return self._matcher

    def inject(self, reply: bool, data: bytes) -> int:
        """Queue `data` to be sent in direction `reply`; returns its length.

        For the current direction, answer INJECT to place it; for the other one
        it goes out at that direction's next frame boundary.
        Raises ParserError past limits.MAX_INJECT waiting bytes.
        """
        buffer = self.injected[reply]
        if len(buffer) + len(data) > limits.MAX_INJECT:
            raise ParserError(f"more than {limits.MAX_INJECT} bytes wait to be injected")
        buffer += data
        return len(data)

    def ask(
        self, question: Coroutine[Any, Any, bool], *, timeout: float, otherwise: bool
    ) -> Answer:
        """Ask somebody else, in a thread of the library: a service, a database.

        question: a coroutine, run by asyncio; true or false is the answer.  timeout:
        seconds until `otherwise` is the answer; it is, too, if the coroutine raises.

        The parser returns WAIT while the answer is not `ready`, and is then called
        again with the same data; other connections go on.
        """
        answer = ask(question, timeout, otherwise, self.wake_up)
        self._answers = [known for known in self._answers if not known.ready]
        self._answers.append(answer)
        return answer

    def wake_up(self) -> None:
        """There is an answer."""
        self.wake()

    @property
    def decision(self) -> Decision:
        """What the policy says about this connection before any message is seen."""
        if self._policy is not self.instance.policy:
            self._resolve()
        return self._decision

    def _resolve(self) -> None:
        policy = self.instance.policy
        self._decision = policy.decide(
            self.policy_name,
            ingress=self.ingress,
            port=self.port,
            remote=self.src_id if self.ingress else self.dst_id,
            parser=self.parser_name,
            rule_class=None if self.factory is None else self.factory.rule_class,
        )
        self._matcher = self._decision.matcher
        self._policy = policy
        would = self._decision.would
        if would is not None:
            self._plain_log = self._plain_log or self.log
            audit_log = self._plain_log if self.open_audit_log is None else self.open_audit_log()
            self._matcher, self.log = audited(self._matcher, would, self._plain_log, audit_log)
        elif self._plain_log is not None:
            self.log, self._plain_log = self._plain_log, None

    # What hosts use.

    def on_data(self, reply: bool, end_stream: bool, data: list[bytes], ops: list[int]) -> int:
        """Run the parser over `data` and append flat ops; returns a FilterResult.

        Raises nothing: what a parser raises is logged. The ops before it count.
        """
        parser = self.parser
        if parser is None:
            return FilterResult.UNKNOWN_CONNECTION
        try:
            if isinstance(parser, BatchParser):
                guarded(self.budget, parser.on_batch, reply, end_stream, b"".join(data), ops)
            else:
                guarded(self.budget, self.run, reply, end_stream, data, ops)
        except BaseException as error:
            return self.panic(error)
        return FilterResult.OK

    def block(self) -> None:
        """Wait for what has been asked: hosts do that which cannot be called back."""
        for answer in self._answers:
            answer.wait()

    def run(self, reply: bool, end_stream: bool, data: list[bytes], ops: list[int]) -> None:
        """Call a raw parser until the list is full or it has no more to say.

        Raises what the parser raises, and ParserError for an impossible answer.
        """
        if self.parser is not None:
            run_raw(self.parser, self.injected[reply], reply, end_stream, data, ops)

    def panic(self, error: BaseException) -> FilterResult:
        """Log what a parser raised; returns PARSER_ERROR, which closes the connection."""
        # Not isinstance: that asks the error itself too.
        if issubclass(type(error), ParserError):
            self.fail(f"Parser error: {text(error)}")
        else:
            self.fail(f"Panic: {describe(error)}")
            self.count_panic()
            if self.settings.debug:
                logger.error("%s", story(error))
        return FilterResult.PARSER_ERROR

    @property
    def on_error(self) -> OnError:
        """What becomes of the connection if its parser fails now."""
        if self.settings.on_error is not None:
            return self.settings.on_error
        return OnError.CLOSE if self.decision.would is None else OnError.PASS_THROUGH

    def fail(self, status: str) -> None:
        """Log why the parser has failed, and prepare what `on_error` asks for."""
        if self.on_error == OnError.PASS_THROUGH:
            self.log(EntryType.Request, {"status": f"Passed unparsed from here on: {status}"})
            return
        self.log_status(status)
        if self.on_error == OnError.DENY and self.parser is not None:
            try:
                self.inject(True, guarded(self.budget, self.parser.unparsable))
            except BaseException as error:
                self.log_status(f"Panic: unparsable: {describe(error)}")

    def dispossess(self) -> None:
        """Give up the parser, which holds more than it may."""
        self.parser = None
        self.made_by(None, None)
        self.fail(f"Panic: the parser holds more than its {self.memory} bytes of memory")
        self.count_panic()

    def crashed(self, why: str) -> None:
        """The process of the parser has died; the connection ends as `on_error` says."""
        self.fail(f"Panic: the process of parser {self.parser_name!r} {why}")
        self.count_panic()

    def count_panic(self) -> None:
        """Tell the circuit breaker of a panic, which has been logged."""
        self.panicked = True
        pause = self.breaker.panicked()
        if pause is not None:
            status = (
                f"Circuit breaker: parser {self.parser_name!r} is taken out for {pause:g} s, "
                f"after {self.breaker.total} panics"
            )
            logger.error("%s", status)
            self.log_status(status)

    def log_status(self, status: str) -> None:
        """Write a Denied entry that tells what happened to this connection."""
        self.log(EntryType.Denied, {"status": status})

    def close(self) -> None:
        """The connection is gone: tell the parser and break the reference cycle."""
        parser, self.parser = self.parser, None
        for answer in self._answers:
            answer.cancel()
        self._answers = []
        self.wake = nothing
        self.made_by(None, None)
        if parser is not None:
            try:
                guarded(self.budget, parser.on_close)
            except BaseException as error:
                self.panic(error)
        if self.tap is not None:
            self.tap.gone()
        if not self.panicked and not self.unparsed:
            self.breaker.ended()

    def __repr__(self) -> str:
        arrow = "ingress" if self.ingress else "egress"
        return f"<Connection {self.parser_name} {arrow} {self.src_addr} -> {self.dst_addr}>"


def nothing() -> None:
    """The `wake` of a host that has nobody to wake."""


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
