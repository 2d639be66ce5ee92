"""Luke talks to a droid whose policy lets it read the plans, and little else.

One connection does it all: a denied command is answered ERROR by the parser, in
its place, and the droid never sees it. A stranger's connection is closed.
"""

from __future__ import annotations

import socket
from typing import BinaryIO

from demos.stage import HERE, Stage, brief, confirmed, connect, line_server, proxy, run_stories
from node.parsers import choose_parser
from node.run import ProxyConfig

POLICY = HERE / "r2d2-policy.yaml"
PORT = 4040
DROID, LUKE, STRANGER = 5, 6, 7

LUKES = (
    ("READ plans/death-star", "allowed"),
    ("READ secrets/vader", "denied"),
    ("WRITE plans/death-star", "denied"),
    ("READ plans/x-wing", "allowed"),
    ("RESET", "denied"),
    ("HALT", "allowed"),
)


def tell(stage: Stage) -> None:
    """Run the story; every command becomes a row of `stage`."""
    stage.title("A trusty droid (demos/r2d2-policy.yaml)")
    heard: list[bytes] = []

    def droid(line: bytes) -> bytes:
        heard.append(line.rstrip())
        return b"beep: " + line

    with (
        line_server(stage.address(DROID, PORT), droid) as server,
        stage.endpoints() as endpoints,
        proxy(
            stage,
            ProxyConfig(
                choose_parser("r2d2"),
                listen=stage.address(DROID, 0),
                upstream=server,
                policies=(POLICY,),
                endpoints=endpoints,
            ),
        ) as (running, log),
    ):
        for who, host, commands in (
            ("luke", LUKE, LUKES),
            ("a stranger", STRANGER, ((LUKES[0][0], "closed"),)),
        ):
            source = stage.address(host, 0).host
            with connect(source, running.address) as connection:
                replies = connection.makefile("rb")
                for command, expected in commands:
                    observed = _observe(command.encode(), connection, replies)
                    entry = log.request_of(source)
                    observed = confirmed(observed, entry)
                    stage.check(who, command, expected, observed, brief(entry))
        allowed = [command.encode() for command, expected in LUKES if expected == "allowed"]
        stage.check("the droid", "has heard only what is allowed", True, heard == allowed)


def _observe(command: bytes, connection: socket.socket, replies: BinaryIO) -> str:
    try:
        connection.sendall(command + b"\r\n")
        reply = replies.readline()
    except ConnectionError:
        return "closed"
    if reply == b"beep: " + command + b"\r\n":
        return "allowed"
    return {b"ERROR\r\n": "denied", b"": "closed"}.get(reply, f"answered {reply!r}")


if __name__ == "__main__":
    raise SystemExit(run_stories(tell))
