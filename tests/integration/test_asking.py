"""A parser that asks a real service about every request, through a real Envoy."""

from __future__ import annotations

import http.server
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from proxylib import registry
from proxylib.proto.accesslog_pb2 import LogEntry
from tests.serving import serving

CODE = """
import asyncio
from proxylib import FramedParser, Message, lines, parser

@parser("asks")
class Asks(FramedParser):
    framing = lines(b"\\n")
    ask_timeout = 2.0

    def request(self, frame):
        return Message(frame=frame)

    async def ask(self, request):
        reader, writer = await asyncio.open_connection("127.0.0.1", {port})
        try:
            writer.write(b"GET /" + request["frame"] + b" HTTP/1.0\\r\\n\\r\\n")
            return b" 200 " in await reader.readline()
        finally:
            writer.close()

    def denied(self, request):
        return b"denied\\n"
"""


class Judge(http.server.BaseHTTPRequestHandler):
    """Says yes to all but what begins with "no", and thinks long about "slow"."""

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(1.0)
        self.send_response(403 if self.path.startswith("/no") else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Stage:
    def __init__(self, proxy: Proxy, log: list[LogEntry], judge: ExitStack) -> None:
        self.proxy = proxy
        self.log = log
        self.judge = judge

    def connect(self) -> socket.socket:
        return socket.create_connection((self.proxy.address.host, self.proxy.address.port), 15)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: object) -> Iterator[Stage]:
    monkeypatch.setattr(registry, "_factories", {})
    log: list[LogEntry] = []
    with ExitStack() as stack:
        judge = stack.enter_context(ExitStack())
        judging = judge.enter_context(serving(Judge))
        code = tmp_path / "asks.py"
        code.write_text(CODE.format(port=judging.port))
        config = ProxyConfig(
            parser=choose_parser(str(code)),
            listen=Address.parse("127.0.0.1:0", any_port=True),
            upstream=stack.enter_context(serving()),
            sandbox=getattr(request, "param", {}),
        )
        proxy = stack.enter_context(Proxy(config, on_entries=log.extend))
        yield Stage(proxy, log, judge)


def read(client: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        chunk = client.recv(4096)
        assert chunk, f"closed after {got!r}"
        got += chunk
    return got


def test_the_service_decides(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"yes\n")
        assert read(client, 4) == b"yes\n"
        client.sendall(b"no\n")
        assert read(client, 7) == b"denied\n"
        client.sendall(b"a\nb\nc\n")
        assert read(client, 6) == b"a\nb\nc\n"


def test_others_go_on_while_one_waits(stage: Stage) -> None:
    """Of one worker thread: an answer that takes a second holds up nobody else."""
    with stage.connect() as slow, stage.connect() as quick:
        slow.sendall(b"slow\n")
        begun = time.monotonic()
        for number in range(20):
            line = b"%d\n" % number
            quick.sendall(line)
            assert read(quick, len(line)) == line
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.recv(1)
        assert time.monotonic() - begun < 1.0
        slow.settimeout(15)
        assert read(slow, 5) == b"slow\n"


def test_the_end_of_the_stream_waits_for_the_answer(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"slow\nyes\n")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 9) == b"slow\nyes\n"
        assert client.recv(1) == b""


def test_the_end_that_comes_while_it_waits(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"slow\n")
        time.sleep(0.2)
        client.sendall(b"more\n")
        time.sleep(0.2)
        client.shutdown(socket.SHUT_WR)
        assert read(client, 10) == b"slow\nmore\n"
        assert client.recv(1) == b""


def test_a_client_that_leaves_while_it_waits(stage: Stage) -> None:
    for _ in range(20):
        with stage.connect() as client:
            client.sendall(b"slow\n")
    with stage.connect() as client:
        client.sendall(b"yes\n")
        assert read(client, 4) == b"yes\n"


def test_no_service_is_no(stage: Stage) -> None:
    stage.judge.close()
    with stage.connect() as client:
        client.sendall(b"yes\n")
        assert read(client, 7) == b"denied\n"
    deadline = time.monotonic() + 10
    while not stage.log:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "refused" in stage.log[0].generic_l7.fields["asked"].lower()


def test_a_flood_while_it_waits_is_bounded(stage: Stage) -> None:
    """What a client sends meanwhile stays in its own socket."""
    with stage.connect() as client:
        client.sendall(b"slow\n")
        client.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 64 << 20:
                sent += client.send(b"x\n" * 32768)
        assert sent < 32 << 20


def test_many_at_a_time(stage: Stage) -> None:
    def one(number: int) -> bool:
        with stage.connect() as client:
            for turn in range(5):
                line = b"%d-%d\n" % (number, turn)
                client.sendall(line)
                if read(client, len(line)) != line:
                    return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(60)))


@pytest.mark.parametrize("stage", [{"isolation": "process"}], indirect=True)
def test_an_isolated_parser_cannot_ask_and_the_log_says_so(stage: Stage) -> None:
    with stage.connect() as client:
        client.sendall(b"yes\n")
        assert client.recv(100) == b""
    deadline = time.monotonic() + 20
    while not stage.log:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status = stage.log[0].generic_l7.fields["status"]
    assert status.startswith(
        "Parser error: a parser with isolation: process cannot wait for answers"
    )
