"""``HOST:PORT`` as a user writes it: IPv4, IPv6 in brackets, or a name."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Self

from node.errors import SetupError, UsageError

MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port. `str` gives the form that `parse` reads."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, any_port: bool = False) -> Self:
        """Read ``ip:port``, ``[ip6]:port`` or ``name:port``.

        any_port: port 0 is legal (to listen on a free one).
        Raises UsageError that says what is wrong with `text`.
        """
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or not rest.startswith(":"):
                raise UsageError(f"{text!r}: an IPv6 address is written [::1]:PORT")
            _check_ip6(host, text)
            port = rest[1:]
        else:
            host, colon, port = text.rpartition(":")
            if not colon:
                raise UsageError(f"{text!r}: no port; write HOST:PORT, such as 127.0.0.1:11211")
            if ":" in host:
                raise UsageError(f"{text!r}: put an IPv6 address in brackets: [{host}]:{port}")
            _check_host(host, text)
        return cls(host, _port(port, text, any_port))

    @property
    def numeric(self) -> bool:
        """True for an IP address, False for a name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def resolve(self) -> Address:
        """The same with a name looked up: its first address, in the system's order.

        Raises UsageError if it has none.
        """
        if self.numeric:
            return Address(str(ipaddress.ip_address(self.host)), self.port)
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"{self}: the name {self.host!r} has no address: {reason}") from error
        return Address(str(found[0][4][0]), self.port)


def check_listen(address: Address) -> None:
    """Raise SetupError if nobody can listen on numeric `address` now."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy does: a port with connections in TIME_WAIT is free. Without
        # SO_REUSEPORT, a port that another Envoy would share is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen()
        except OSError as error:
            raise SetupError(f"cannot listen on {address}: {_why(error)}") from error


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; stop what listens there, or choose another (0: any free)"
        case errno.EACCES:
            return "ports below 1024 need root; choose a higher one"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return os.strerror(error.errno) if error.errno else str(error)


def _check_ip6(host: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise UsageError(f"{text!r}: not an IPv6 address: {error}") from error


def _check_host(host: str, text: str) -> None:
    if not host:
        raise UsageError(f"{text!r}: no host; write 127.0.0.1:PORT, or 0.0.0.0:PORT for all")
    looks_numeric = all(c.isdigit() or c == "." for c in host)
    if looks_numeric:
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise UsageError(f"{text!r}: not an IPv4 address: {error}") from error
    elif not all(c.isascii() and (c.isalnum() or c in "-._") for c in host):
        raise UsageError(f"{text!r}: {host!r} is neither an address nor a host name")


def _port(port: str, text: str, any_port: bool) -> int:
    if not (port.isascii() and port.isdigit()):
        raise UsageError(f"{text!r}: the port {port!r} is not a number")
    number = int(port) if len(port) <= 5 else MAX_PORT + 1
    if number > MAX_PORT or not (number or any_port):
        raise UsageError(f"{text!r}: a port is a number from 1 to {MAX_PORT}")
    return number
