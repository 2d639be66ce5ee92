"""HTTP inside Envoy's connection manager: what native/envoy_http.c asks.

Envoy has decoded the request, whatever the version of HTTP; we judge its headers by the
rules that the parser ``http`` has too, and log what came of it.  Whatever goes wrong,
the request does not pass.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxylib.connection import Connection
from proxylib.errors import ConfigError
from proxylib.hosts import HostMap
from proxylib.http import DENIED_BODY, Header, HeaderEdits, log_fields
from proxylib.http_headers import FRAMING
from proxylib.http_path import normalize_path
from proxylib.instance import Instance
from proxylib.ops import EntryType
from proxylib.sandbox import describe, guarded

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
"""Client connections remembered, so that a stream on one need not resolve its policy."""

BAD_REQUEST_BODY = b"Bad request\r\n"

FORBIDDEN, BAD_REQUEST = 403, 400

NO_GRPC_STATUS = -1

Answer = tuple["Exchange | None", int, tuple[bytes, ...], tuple[Header, ...], bytes]
"""What becomes of a request: how to log its response; the status to answer it with, 0 to
let it pass; names of headers to remove, headers to add; the body of the answer."""


@dataclass(slots=True)
class Exchange:
    """A request that passed, until its response is there."""

    connection: Connection
    fields: dict[str, Any]
    started: int

    def complete(self, status: int, grpc_status: int) -> None:
        """Log the response: its status, 0 if there was none; the latency to its headers, or
        of gRPC to its end."""
        fields = {key: self.fields[key] for key in _RESPONSE_FIELDS if key in self.fields}
        fields["status"] = status
        if grpc_status != NO_GRPC_STATUS:
            fields["grpc_status"] = str(grpc_status)
        latency = time.monotonic_ns() - self.started
        self.connection.log(EntryType.Response, fields, "http", latency)


_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_LOOKALIKES = frozenset(name.replace("-", "_").encode() for name in FRAMING if "-" in name)
"""What CGI and WSGI servers take for the header with dashes."""


def _ambiguity(fields: Mapping[str, Any]) -> str:
    """What a server might read otherwise than we do; "" if there is nothing."""
    path = fields["path"]
    # Envoy has made it so; a listener whose options say otherwise must not be the gap.
    if normalize_path(path) != path:
        return "the path is not in its normal form"
    if not _HOST.fullmatch(fields["host"]):
        return "the Host is none, or several"
    lookalike = next((name for name, _ in fields["headers"] if name in _LOOKALIKES), None)
    return f"the header {lookalike.decode()} looks like another" if lookalike else ""


def _log_denied(connection: Connection, fields: dict[str, Any], status: int, reason: str) -> None:
    """Log a request that is answered with `status`. reason: "" if no rule allows it."""
    fields["status"] = status
    if reason:
        fields["reason"] = reason
    connection.log(EntryType.Denied, fields, "http")


_RESPONSE_FIELDS = ("protocol", "method", "scheme", "host", "path")

_PSEUDO = {b":method": "method", b":path": "path", b":authority": "host", b":scheme": "scheme"}


@dataclass(eq=False)
class HttpFilterConfig:
    """One HTTP filter of a listener: whose policy, and the connections that it has seen.

    destination: what the policy and the log call the destination, if not the
    connection's own local address.
    """

    instance: Instance
    parser: str
    ingress: bool
    policy_name: str
    destination: str
    release: Any
    """Called when Envoy has removed the listener."""
    _connections: dict[tuple[str, str], Connection] = field(default_factory=dict)
    _hosts: HostMap | None = None

    def request(
        self, headers: Sequence[Header], remote: str, local: str, protocol: bytes
    ) -> Answer:
        """Judge a request with Envoy's header map `headers`, pseudo headers included.

        remote, local: ``ip:port`` or ``[ip6]:port`` of the connection's ends. Raises ConfigError
        for addresses that are none.
        """
        connection = self._connection(remote, local)
        fields: dict[str, Any] = {"protocol": protocol}
        others: list[Header] = []
        for header in headers:
            known = _PSEUDO.get(header[0])
            if known is None:
                others.append(header)
            else:
                fields[known] = header[1]
        for name in ("method", "path", "host"):
            fields.setdefault(name, b"")
        fields["headers"] = tuple(others)
        try:
            return self._judge(connection, fields)
        except BaseException as error:
            status = f"Panic: {describe(error)}"
            _log_denied(connection, log_fields(fields), FORBIDDEN, status)
            return None, FORBIDDEN, (), (), DENIED_BODY

    def _judge(self, connection: Connection, fields: dict[str, Any]) -> Answer:
        ambiguous = _ambiguity(fields)
        if ambiguous:
            _log_denied(connection, log_fields(fields), BAD_REQUEST, ambiguous)
            return None, BAD_REQUEST, (), (), BAD_REQUEST_BODY
        verdict: object = guarded(connection.budget, connection.matcher, fields)
        logged = log_fields(fields, verdict)
        if not verdict:
            _log_denied(connection, logged, FORBIDDEN, connection.decision.reason)
            return None, FORBIDDEN, (), (), DENIED_BODY
        connection.log(EntryType.Request, logged, "http")
        exchange = Exchange(connection, fields, time.monotonic_ns())
        if isinstance(verdict, HeaderEdits):
            return exchange, 0, verdict.remove, verdict.add, b""
        return exchange, 0, (), (), b""

    def _connection(self, remote: str, local: str) -> Connection:
        hosts = self.instance.hosts
        if hosts is not self._hosts or len(self._connections) >= MAX_CONNECTIONS:
            # Identities may be others now.
            self._connections, self._hosts = {}, hosts
        key = (remote, local)
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = self._open(remote, local)
        return connection

    def _open(self, remote: str, local: str) -> Connection:
        dst_addr = self.destination or local
        src_ip, dst_ip = (a.rpartition(":")[0].strip("[]") for a in (remote, dst_addr))
        identity = self.instance.hosts.identity
        connection = self.instance.connection(
            self.parser,
            ingress=self.ingress,
            src_id=identity(src_ip),
            dst_id=identity(dst_ip),
            src_addr=remote,
            dst_addr=dst_addr,
            policy_name=self.policy_name or (dst_ip if self.ingress else src_ip),
        )
        if connection is None:
            raise ConfigError(f"no destination address: {dst_addr!r}")
        return connection

    def close(self) -> None:
        """Envoy has removed the listener."""
        self.release()
