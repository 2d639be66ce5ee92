"""What both directions of one connection know: replies that are owed, and modes."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import NamedTuple

from proxylib import Connection, ParserError

MAX_PENDING = 1 << 17
"""Most replies owed to one client: as many requests as Envoy's and the kernel's buffers
hold between client and server. They take less than half of limits.MEMORY_BUDGET."""

PROTO = "redis"
"""What log entries call the protocol."""

NOPERM = b"-NOPERM access denied by policy\r\n"

PLACEHOLDER = b"*1\r\n$3\r\nGET\r\n"
"""A request that every server refuses, in a transaction too, which then fails at EXEC."""


class Kind(Enum):
    """What is owed to the client."""

    REPLY = auto()
    """The server's reply."""
    CONFIRMATIONS = auto()
    """As many messages about subscriptions as `Owed.messages` says."""
    DENIAL = auto()
    """Our error; the server sends nothing."""
    REPLACED = auto()
    """Our error, in place of the server's to PLACEHOLDER."""


class Owed(NamedTuple):
    """A reply owed. command: its request's. sent: when that went on, nanoseconds.

    messages: of CONFIRMATIONS; 0 for "until nothing of the kind is subscribed".
    """

    kind: Kind
    command: bytes
    sent: int
    messages: int = 1


class State:
    """Both directions' memory of one connection."""

    __slots__ = (
        "connection",
        "in_transaction",
        "inside_reply",
        "monitoring",
        "pending",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pending: deque[Owed] = deque()
        self.in_transaction = False
        """Whether a MULTI was sent, and nothing that ends it."""
        self.monitoring = False
        """Whether a MONITOR was sent."""
        self.inside_reply = False
        """Whether the server's stream has passed in part of a reply or push."""

    def owe(self, owed: Owed) -> None:
        """A request has gone to the server, or our error must wait for its turn."""
        if len(self.pending) >= MAX_PENDING:
            raise ParserError(f"more than {MAX_PENDING} requests wait for their replies")
        self.pending.append(owed)

    def refuse(self, command: bytes, now: int) -> bytes:
        """Answer a denied request in its place; returns what to send to the server for it."""
        if self.in_transaction:
            # The server must know, to fail the transaction.
            self.owe(Owed(Kind.REPLACED, command, now))
            return PLACEHOLDER
        if self.pending or self.inside_reply:
            self.owe(Owed(Kind.DENIAL, command, now))
        else:
            self.connection.inject(True, NOPERM)
        return b""
