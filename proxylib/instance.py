"""A module instance: the policy, the identities and the log of one host configuration.

`InstanceTable` keeps the instances that hosts have opened: the same parameters
give the same instance, counted.  Connections keep working after their instance
was closed; its policy then stays as it was.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from proxylib import npds
from proxylib.connection import Connection
from proxylib.errors import ConfigError, PolicyError, RegistrationError, RuleError
from proxylib.hosts import HostMap, compile_hosts
from proxylib.http_secrets import Secrets
from proxylib.logstream import LogStream, no_log
from proxylib.ops import FilterResult
from proxylib.parser import ParserFactory
from proxylib.policy import PolicyMap, compile_policies
from proxylib.proto import accesslog_pb2 as accesslog
from proxylib.registry import get_parser_factory
from proxylib.sandbox import DEFAULTS, OnError, Settings

log = logging.getLogger(__name__)

FIRST_POLICY_WAIT = 1.0
"""Seconds that opening a module waits for its first policy; traffic is denied before."""

PARAMETERS = ("access-log-path", "xds-path", "node-id")


class AccessLog(Protocol):
    """The access-log client (natively: proxylib_native.AccessLog)."""

    def stream(self, prefix: bytes, proto: str) -> LogStream: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Parameters:
    """What a host opens a module with."""

    access_log_path: str = ""
    xds_path: str = ""
    node_id: str = ""
    secrets_path: str = ""
    """Folder of the values that HTTP rules name (proxylib/http_secrets.py)."""


def parse_parameters(pairs: Sequence[tuple[str, str]]) -> Parameters:
    """Of duplicates the last wins. Raises ConfigError for an unknown key."""
    values = dict(pairs)
    unknown = [key for key in values if key not in PARAMETERS]
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r} (known: {', '.join(PARAMETERS)})")
    return Parameters(**{key.replace("-", "_"): value for key, value in values.items()})


@dataclass(eq=False)
class Instance:
    """One open module."""

    parameters: Parameters
    log: AccessLog | None
    policy: PolicyMap = field(default_factory=PolicyMap)
    hosts: HostMap = field(default_factory=HostMap)
    secrets: Secrets = field(init=False)
    client: npds.Client | None = None
    references: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a policy is compiled and put in force."""

    def __post_init__(self) -> None:
        folder = self.parameters.secrets_path
        self.secrets = Secrets(Path(folder) if folder else None)

    def start(self) -> None:
        """Subscribe to policies, if the parameters name a control server."""
        if self.parameters.xds_path:
            self.client = npds.Client(
                self.parameters.xds_path,
                self.parameters.node_id,
                [
                    npds.Subscription(npds.POLICY_TYPE, npds.POLICY_METHOD, self._set_policy),
                    npds.Subscription(npds.HOSTS_TYPE, npds.HOSTS_METHOD, self._set_hosts),
                ],
            )

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        if self.log is not None:
            self.log.close()

    def parsers_loaded(self, anew: Collection[str] = ()) -> None:
        """Compile again what was closed for want of a parser, and what names one of `anew`."""
        with self._lock:
            try:
                self._compile(self.policy.version, list(self.policy.compiled), anew)
            except PolicyError as error:
                log.warning("the policy stays as it was: %s", error)

    def check_rules(self, factories: Mapping[str, ParserFactory]) -> None:
        """Raise RegistrationError unless `factories` know the rules that are in force."""
        for name, factory in factories.items():
            for rule in self.policy.rules_of(name):
                if type(rule) is factory.rule_class:
                    continue
                try:
                    factory.rule_class(rule.pairs)
                except RuleError as error:
                    raise RegistrationError(
                        f"the new code of {name!r} does not know a rule that is in force: {error}"
                    ) from error

    def _set_policy(self, version: str, resources: Sequence[bytes]) -> None:
        with self._lock:
            self._compile(version, resources)

    def _compile(
        self, version: str, resources: Sequence[bytes], anew: Collection[str] = ()
    ) -> None:
        self.policy = compile_policies(
            resources,
            get_parser_factory,
            version=version,
            previous=self.policy.without(anew),
            secrets=self.secrets,
        )

    def _set_hosts(self, version: str, resources: Sequence[bytes]) -> None:
        self.hosts = compile_hosts(resources, version=version)

    def connect(
        self,
        parser: str,
        *,
        ingress: bool,
        src_id: int,
        dst_id: int,
        src_addr: str,
        dst_addr: str,
        policy_name: str,
        settings: Settings = DEFAULTS,
    ) -> Connection | FilterResult:
        """A connection under its parser, or why there is none.

        Checks the parser's name, then the destination address, then asks the
        parser's factory, which may refuse (POLICY_DROP).
        """
        try:
            factory = get_parser_factory(parser)
        except RegistrationError:
            factory = None
        if factory is None:
            return FilterResult.UNKNOWN_PARSER
        connection = self.connection(
            parser,
            ingress=ingress,
            src_id=src_id,
            dst_id=dst_id,
            src_addr=src_addr,
            dst_addr=dst_addr,
            policy_name=policy_name,
            settings=settings,
        )
        if connection is None:
            return FilterResult.INVALID_ADDRESS
        if not connection.breaker.admits():
            return self.without_parser(connection)
        result = connection.create(factory)
        if result == FilterResult.PARSER_ERROR:
            connection.unparsed = connection.on_error == OnError.PASS_THROUGH
        return connection if result == FilterResult.OK or connection.unparsed else result

    def connection(
        self,
        parser: str,
        *,
        ingress: bool,
        src_id: int,
        dst_id: int,
        src_addr: str,
        dst_addr: str,
        policy_name: str,
        settings: Settings = DEFAULTS,
    ) -> Connection | None:
        """A connection with its policy and log, and no parser yet; None if `dst_addr` is none."""
        port = destination_port(dst_addr)
        if port is None:
            return None
        connection = Connection(
            self,
            parser,
            ingress=ingress,
            src_id=src_id,
            dst_id=dst_id,
            src_addr=src_addr,
            dst_addr=dst_addr,
            port=port,
            policy_name=policy_name,
            log=no_log,
            settings=settings,
        )
        if self.log is not None:
            prefix = log_prefix(connection)
            connection.log = self.log.stream(prefix, parser)
            connection.open_audit_log = partial(self.log.stream, prefix + _AUDIT, parser)
        return connection

    def without_parser(self, connection: Connection) -> Connection | FilterResult:
        """A connection while its parser is taken out."""
        if connection.on_error != OnError.PASS_THROUGH:
            connection.log_status(f"Circuit breaker: parser {connection.parser_name!r} is out")
            return FilterResult.PARSER_ERROR
        connection.unparsed = True
        connection.fail(f"Circuit breaker: parser {connection.parser_name!r} is out")
        return connection


_AUDIT = accesslog.LogEntry(audit=True).SerializeToString()
"""What the prefix of an entry has besides if it passes in audit mode only."""


def log_prefix(connection: Connection) -> bytes:
    """The LogEntry fields that all entries of a connection share, encoded."""
    return accesslog.LogEntry(
        policy_name=_text(connection.policy_name),
        source_security_id=connection.src_id,
        source_address=_text(connection.src_addr),
        destination_address=_text(connection.dst_addr),
        is_ingress=connection.ingress,
        destination_security_id=connection.dst_id,
    ).SerializeToString()


def _text(text: str) -> str:
    return text[:255].encode("utf-8", "backslashreplace").decode()


def destination_port(address: str) -> int | None:
    """The port of ``ip:port`` or ``[ip6]:port``; None if there is none, or it is 0."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 10:
        return None
    bracketed = host.startswith("[") and host.endswith("]")
    if (":" in host and not bracketed) or "[" in host[1:] or "]" in host[:-1]:
        return None
    if host.startswith("[") != host.endswith("]"):
        return None
    number = int(port)
    return number if 0 < number < 1 << 32 else None


@dataclass(eq=False)
class InstanceTable:
    """The open instances of this process, by number."""

    open_log: Callable[[str], AccessLog]
    _instances: dict[int, Instance] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, parameters: Parameters, *, wait: float = FIRST_POLICY_WAIT) -> int:
        """The number of the instance with `parameters`, opened if need be.

        wait: seconds that its first policy may take until this returns all the same.
        An empty node-id matches any instance with the same paths.
        Raises OSError or ValueError for an unusable access-log path.
        """
        with self._lock:
            number = self._find(parameters)
            if number is None:
                path = parameters.access_log_path
                instance = Instance(parameters, self.open_log(path) if path else None)
                instance.start()
                number = next(self._numbers)
                self._instances[number] = instance
            else:
                instance = self._instances[number]
                instance.references += 1
        if instance.client is not None:
            instance.client.wait_first(wait)
        return number

    def _find(self, wanted: Parameters) -> int | None:
        for number, instance in self._instances.items():
            known = instance.parameters
            same_paths = (known.access_log_path, known.xds_path, known.secrets_path) == (
                wanted.access_log_path,
                wanted.xds_path,
                wanted.secrets_path,
            )
            if same_paths and (not wanted.node_id or known.node_id == wanted.node_id):
                return number
        return None

    def close(self, number: int) -> None:
        """Give up one reference; the last one ends the instance's streams and log."""
        with self._lock:
            instance = self._instances.get(number)
            if instance is None:
                return
            instance.references -= 1
            if instance.references > 0:
                return
            del self._instances[number]
        instance.close()

    def parsers_loaded(self, anew: Collection[str] = ()) -> None:
        """Have every open instance look again for the parsers of its policy.

        anew: parsers whose code has changed.
        """
        for instance in self._open():
            instance.parsers_loaded(anew)

    def check_rules(self, factories: Mapping[str, ParserFactory]) -> None:
        """Raise RegistrationError unless `factories` know the rules in force anywhere."""
        for instance in self._open():
            instance.check_rules(factories)

    def _open(self) -> list[Instance]:
        with self._lock:
            return list(self._instances.values())

    def get(self, number: int) -> Instance | None:
        return self._instances.get(number)
