"""A parser panics; its connection is closed, and nothing else happens.

The parser is a file of its own (fragile.py), named to the proxy by its path.  No
policy is given, so everything is allowed.
"""

from __future__ import annotations

import socket
from functools import cache

from demos.stage import HERE, Stage, brief, connect, line_server, proxy, run_stories
from node.address import Address
from node.envoy import describe
from node.parsers import ParserChoice, choose_parser
from node.run import ProxyConfig

PARSER = HERE / "fragile.py"
BYSTANDER, VICTIM = 2, 3


@cache
def fragile() -> ParserChoice:
    """The parser of the story; loaded into this process once."""
    return choose_parser(str(PARSER))


def tell(stage: Stage) -> None:
    """Run the story; every observation becomes a row of `stage`."""
    stage.title("A parser with a bug (demos/fragile.py)")
    with (
        line_server(Address("127.0.0.1", 0), lambda line: b"echo: " + line) as server,
        proxy(stage, ProxyConfig(fragile(), listen=Address("127.0.0.1", 0), upstream=server)) as (
            running,
            log,
        ),
    ):
        pid = running.pid
        bystander = stage.address(BYSTANDER, 0).host
        victim = stage.address(VICTIM, 0).host
        with (
            connect(bystander, running.address) as calm,
            connect(victim, running.address) as doomed,
        ):
            _talk(stage, "bystander", calm, b"hello")
            doomed.sendall(b"BOOM\n")
            closed = _is_closed(doomed)
            entry = log.request_of(victim)
            stage.check("victim", "BOOM: its connection", "closed", closed, brief(entry))
            status = entry.generic_l7.fields.get("status", "") if entry is not None else ""
            told = "Panic: RuntimeError: I did not expect that"
            stage.check("the log", "has the panic and its place", True, status.startswith(told))
            _talk(stage, "bystander", calm, b"still here")
        with connect(victim, running.address) as again:
            _talk(stage, "victim, again", again, b"a new start")
        stage.check("Envoy", "is the same process", pid, running.pid)
        stage.check("Envoy", "is", "still running", describe(running.envoy.returncode))


def _talk(stage: Stage, who: str, connection: socket.socket, line: bytes) -> None:
    connection.sendall(line + b"\n")
    reply = connection.recv(100)
    answered = "answered" if reply == b"echo: " + line + b"\n" else repr(reply)
    stage.check(who, f"says {line.decode()!r}", "answered", answered)


def _is_closed(connection: socket.socket) -> str:
    try:
        data = connection.recv(100)
    except ConnectionResetError:
        return "closed"
    except TimeoutError:
        return "open"
    return f"answered {data!r}" if data else "closed"


if __name__ == "__main__":
    raise SystemExit(run_stories(tell))
