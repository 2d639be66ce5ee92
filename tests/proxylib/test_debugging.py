"""Debugging a parser inside a real Envoy: a breakpoint, a traceback, and what it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from node.address import Address
from node.parsers import choose_parser
from node.run import Event, Proxy, ProxyConfig
from proxylib import registry
from tests.serving import serving

CODE = """
from proxylib import FramedParser, Message, lines, parser

@parser("debugged")
class Debugged(FramedParser):
    framing = lines(b"\\n")

    def request(self, frame):
        if frame == b"stop":
            breakpoint()
        if frame == b"token":
            return Message(token=self.connection.config["token"])
        if frame == b"fail":
            raise ValueError("on purpose")  # a line to see
        return Message(frame=frame)
"""


class Stage:
    def __init__(self, proxy: Proxy, events: list[Event], log: list) -> None:  # type: ignore[type-arg]
        self.proxy = proxy
        self.events = events
        self.log = log

    def connect(self) -> socket.socket:
        return socket.create_connection((self.proxy.address.host, self.proxy.address.port), 20)

    def says(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while not any(text in event.message for event in self.events):
            assert time.monotonic() < deadline, [event.message for event in self.events]
            time.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(registry, "_factories", {})
    code = tmp_path / "debugged.py"
    code.write_text(CODE)
    events: list[Event] = []
    log: list = []  # type: ignore[type-arg]
    with ExitStack() as stack:
        config = ProxyConfig(
            parser=choose_parser(str(code)),
            listen=Address.parse("127.0.0.1:0", any_port=True),
            upstream=stack.enter_context(serving()),
            debug=True,
            sandbox={"config": {"token": "s3cret"}},
        )
        proxy = Proxy(config, on_event=events.append, on_entries=log.extend)
        yield Stage(stack.enter_context(proxy), events, log)


def test_a_breakpoint_waits_is_looked_around_in_and_left(stage: Stage) -> None:
    """Longer than any time budget; the command is what a person would use."""
    command = [sys.executable, "-m", "node", "parser", "debug", "--control"]
    with (
        stage.connect() as client,
        subprocess.Popen(
            [*command, str(stage.proxy.control)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as person,
    ):
        assert person.stdin is not None
        assert person.stdout is not None
        client.sendall(b"stop\n")
        stage.says("breakpoint at")
        time.sleep(0.5)
        person.stdin.write("p frame\nw\nc\n")
        person.stdin.flush()
        assert client.recv(100) == b"stop\n"
        seen = ""
        while "b'stop'" not in seen:
            line = person.stdout.readline()
            assert line, seen
            seen += line
        client.sendall(b"more\n")
        assert client.recv(100) == b"more\n"
        person.terminate()
        person.wait(20)


@pytest.mark.parametrize("unread", [False, True])
def test_a_person_who_hangs_up_lets_the_parser_go_on(stage: Stage, unread: bool) -> None:
    with stage.connect() as client, socket.socket(socket.AF_UNIX) as person:
        client.sendall(b"stop\n")
        stage.says("breakpoint at")
        person.connect(str(stage.proxy.folder / "debug.sock"))
        if unread:
            # The prompt is there, and nobody reads it: the other side gets an error.
            person.recv(1, socket.MSG_PEEK)
        person.close()
        assert client.recv(100) == b"stop\n"


def test_a_traceback_shows_the_source(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"fail\n")
        assert client.recv(100) == b""
    stage.says("# a line to see")


def test_what_the_operator_says_reaches_the_parser(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"token\n")
        assert client.recv(100) == b"token\n"
    deadline = time.monotonic() + 20
    while not stage.log:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stage.log[0].generic_l7.fields["token"] == "s3cret"


def test_only_the_owner_can_attach(stage: Stage) -> None:
    assert (stage.proxy.folder / "debug.sock").stat().st_mode & 0o777 == 0o600
