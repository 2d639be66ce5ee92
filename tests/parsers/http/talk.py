"""What the tests of the HTTP parser say to it, and how."""

from __future__ import annotations

from collections.abc import Sequence

from proxylib.testing import LogRecord, Outcome, check_chunking

PUBLIC = [{"path": "/public.*"}]
"""Only what is under /public."""

GET = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n"
PRIVATE = b"GET /private HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

DENIED = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-length: 15\r\ncontent-type: text/plain\r\n\r\n"
    b"Access denied\r\n"
)
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 13\r\ncontent-type: text/plain\r\n"
    b"connection: close\r\n\r\nBad request\r\n"
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def request(line: str, *headers: str, body: bytes = b"", host: str = "a") -> bytes:
    """A request in HTTP/1.1: ``request("PUT /x", "Content-Length: 1", body=b"x")``."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def reply(status: str, *headers: str, body: bytes = b"") -> bytes:
    """A reply: ``reply("200 OK", "Content-Length: 1", body=b"x")``."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body


def talk(*turns: tuple[str, bytes], rules: Sequence[dict[str, str]] | None = PUBLIC) -> Outcome:
    """What comes of ``("client", b"...")`` and ``("server", b"...")``, however it is cut."""
    return check_chunking("http", [(side == "server", data) for side, data in turns], rules)


def errors(log: Sequence[LogRecord]) -> list[str]:
    """Why connections were closed."""
    found = (str(record.fields.get("status", "")) for record in log)
    return [status for status in found if status.startswith(("Parser error", "Panic"))]
