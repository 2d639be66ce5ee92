"""Envoy's own HTTP codec with our filter in it: HTTP/1.1, HTTP/2 and gRPC, with real clients."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from proxylib import normalize_path
from proxylib.accesslog.view import entry_to_json
from proxylib.proto.accesslog_pb2 import Denied, LogEntry, Request, Response
from tests.integration.waiting import until
from tests.proxylib.test_http_path import TABLE

SERVER = "127.0.8.1"

RULES = """
- {method: GET, path: "/public.*"}
- {method: POST, path: "/public.*"}
- {method: GET, path: /token, headers: ["X-Token: [0-9]+"]}
- {method: PUT, path: /path2$, headers: ["X-My-Header: true"]}
- {path: /log, headerMatches: [{name: X-A, value: "1", mismatch: LOG}]}
- {path: /add, headerMatches: [{name: X-A, value: "1", mismatch: ADD}]}
- {path: /delete, headerMatches: [{name: X-A, value: "1", mismatch: DELETE}]}
- {path: /replace, headerMatches: [{name: X-A, value: "1", mismatch: REPLACE}]}
- {path: /secret, headerMatches: [{name: X-Key, secret: {name: key}}]}
- {path: /insert, headerMatches: [{name: X-Key, secret: {name: key}, mismatch: REPLACE}]}
- {path: /no-secret, headerMatches: [{name: X-Key, secret: {name: none}}]}
"""

GRPC_RULES = "- {method: POST, path: /gmem.UserManager/(GetName|Chat)}\n"


def policy(port: int, rules: str, kind: str = "http:") -> str:
    indented = "".join(f"            {line}\n" for line in rules.strip().splitlines())
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n"
        "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - toPorts:\n"
        f'    - ports: [{{port: "{port}", protocol: TCP}}]\n'
        f"      rules:\n        {kind}\n{indented}"
    )


class Stage:
    """A proxy with its codec in front of a server, what it logged, and its policy's file."""

    def __init__(self, folder: Path, port: int, rules: str) -> None:
        self.port = port
        self.file = folder / "policy.yaml"
        self.file.write_text(policy(port, rules))
        endpoints = folder / "endpoints.yaml"
        endpoints.write_text(f"endpoints: [{{address: {SERVER}, labels: {{app: web}}}}]\n")
        secrets = folder / "secrets" / "default"
        secrets.mkdir(parents=True)
        (secrets / "key").write_text("s3cret\n")
        self.log: list[LogEntry] = []
        self.events: list[str] = []
        self.proxy = Proxy(
            ProxyConfig(
                choose_parser("http"),
                Address(SERVER, 0),
                Address(SERVER, port),
                policies=(self.file,),
                endpoints=endpoints,
                codec="auto",
                secrets=folder / "secrets",
            ),
            on_entries=self.log.extend,
            on_event=lambda event: self.events.append(event.message),
        )

    @property
    def url(self) -> str:
        return f"http://{SERVER}:{self.proxy.address.port}"

    def change(self, rules: str) -> None:
        """Returns when the new rules are in force."""
        version = self.proxy.policy.version
        self.file.write_text(policy(self.port, rules))
        in_force = f"rules in force (version {version + 1})"
        until(lambda: any(in_force in event for event in self.events))

    def raw(self, data: bytes) -> bytes:
        """Everything that comes back for `data` on a connection of its own."""
        with socket.create_connection((SERVER, self.proxy.address.port), timeout=10) as connection:
            connection.sendall(data)
            reply = b""
            while got := connection.recv(1 << 16):
                reply += got
            return reply

    def entries(self, path: str, count: int) -> list[LogEntry]:
        """The `count` entries of requests for `path`."""
        found: list[LogEntry] = []

        def there() -> bool:
            found[:] = [entry for entry in self.log if entry.http.path == path]
            return len(found) >= count

        until(there)
        return found


# A server that tells what it has got, in HTTP/1.1 and in HTTP/2.


def echo(connection: socket.socket, got: list[bytes]) -> None:
    with connection:
        preface = connection.recv(1 << 16)
        if preface.startswith(b"PRI * HTTP/2"):
            _echo2(connection, preface, got)
        else:
            _echo1(connection, preface, got)


def _echo1(connection: socket.socket, data: bytes, got: list[bytes]) -> None:
    while data:
        while b"\r\n\r\n" not in data:
            more = connection.recv(1 << 16)
            if not more:
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        got.append(head)
        reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head)
        connection.sendall(reply)
        data = data or connection.recv(1 << 16)


def _echo2(connection: socket.socket, data: bytes, got: list[bytes]) -> None:
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    protocol.initiate_connection()
    while data:
        for event in protocol.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                assert event.headers is not None
                assert event.stream_id is not None
                head = b"\r\n".join(b"%s: %s" % pair for pair in event.headers)  # type: ignore[str-bytes-safe]
                got.append(head)
                protocol.send_headers(event.stream_id, [(":status", "200")])
                protocol.send_data(event.stream_id, head, end_stream=True)
        connection.sendall(protocol.data_to_send())
        data = connection.recv(1 << 16)


@contextmanager
def echo_server() -> Iterator[tuple[int, list[bytes]]]:
    """Its port, and the heads of all requests that have reached it."""
    listener = socket.create_server((SERVER, 0))
    got: list[bytes] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection, got), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], got
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module")
def got() -> Iterator[tuple[int, list[bytes]]]:
    with echo_server() as server:
        yield server


@pytest.fixture(scope="module")
def stage(
    got: tuple[int, list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("http"), got[0], RULES)
    with stage.proxy:
        yield stage


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[httpx.Client]:
    two = request.param == "HTTP/2"
    with httpx.Client(base_url=stage.url, http1=not two, http2=two, timeout=10) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/public", {}, 200),
        ("GET", "/public/a?x=1", {}, 200),
        ("POST", "/public", {}, 200),
        ("PUT", "/public", {}, 403),
        ("GET", "/private", {}, 403),
        ("GET", "/token", {"X-Token": "42"}, 200),
        ("GET", "/token", {"X-Token": "4x"}, 403),
        ("GET", "/token", {}, 403),
        ("PUT", "/path2", {"X-My-Header": "true"}, 200),
        ("PUT", "/path2", {"X-My-Header": "false"}, 403),
        ("PUT", "/path2", {}, 403),
        ("GET", "/secret", {"X-Key": "s3cret"}, 200),
        ("GET", "/secret", {"X-Key": "wrong"}, 403),
        ("GET", "/no-secret", {"X-Key": ""}, 403),
    ],
)
def test_verdicts(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = client.request(method, path, headers=headers)
    assert response.status_code == status
    if status == 403:
        assert response.content == b"Access denied\r\n"


@pytest.mark.parametrize(
    ("path", "value", "arrives"),
    [
        ("/log", "2", ["2"]),
        ("/add", "2", ["2", "1"]),
        ("/add", "1", ["1"]),
        ("/delete", "2", []),
        ("/delete", "1", ["1"]),
        ("/replace", "2", ["1"]),
    ],
)
def test_headers_are_changed(
    client: httpx.Client, path: str, value: str, arrives: Sequence[str]
) -> None:
    seen = client.get(path, headers={"X-A": value}).text.lower().split("\r\n")
    assert [line.partition(": ")[2] for line in seen if line.startswith("x-a: ")] == list(arrives)


def test_a_secret_is_inserted_and_not_logged(client: httpx.Client, stage: Stage) -> None:
    before = len(stage.log)
    assert "x-key: s3cret" in client.get("/insert", headers={"X-Key": "guess"}).text.lower()
    until(lambda: len(stage.log) >= before + 2)
    assert "s3cret" not in str(stage.log[before:])
    assert "guess" not in str(stage.log[before:])


def test_log_entries(client: httpx.Client, stage: Stage) -> None:
    name = f"/public/log-{client._transport._pool._http2}"  # type: ignore[attr-defined]
    client.get(name, headers={"Authorization": "Basic secret"})
    request, response = stage.entries(name, 2)
    assert (request.entry_type, response.entry_type) == (Request, Response)
    told = entry_to_json(request)
    assert told["fields"]["method"] == "GET"
    assert told["fields"]["protocol"] in ("HTTP/1.1", "HTTP/2")
    assert {"name": "authorization", "value": "[redacted]"} in told["fields"]["headers"]
    assert told["source"]["address"].startswith("127.")
    assert told["destination"]["address"] == f"{SERVER}:{stage.port}"
    assert response.http.status == 200
    assert response.latency > 0
    client.get(f"{name}-denied".replace("public", "x"))
    (denied,) = stage.entries(f"{name}-denied".replace("public", "x"), 1)
    assert denied.entry_type == Denied


def test_nobody_answers(stage: Stage, tmp_path: Path) -> None:
    """Envoy's own 503 is a response too."""
    with socket.create_server((SERVER, 0)) as listener:
        port = listener.getsockname()[1]
    gone = Stage(tmp_path, port, "- {}")
    with gone.proxy:
        assert httpx.get(f"{gone.url}/x").status_code == 503
        response = gone.entries("/x", 2)[1]
        assert response.http.status == 503


# One normalisation.

CURL = b"GET %s HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"

REPAIRED = {b"/a/%%32e%%32e/b": b"/a/%252e%252e/b"}
"""What Envoy makes of escapes that are none, and we refuse: it then means nothing else."""


def test_paths_are_what_normalize_path_says(tmp_path: Path) -> None:
    """The table, and every byte raw and escaped, through Envoy as it is configured."""
    paths = list(TABLE)
    paths += [b"/a%cb" % bytes([byte]) for byte in range(256) if byte not in b"\n\r"]
    paths += [b"/a%%%02xb" % byte for byte in range(256)]
    paths += [b"/?a%cb" % bytes([byte]) for byte in range(256) if byte not in b"\n\r"]
    origin = [path for path in paths if path and not path.startswith(b"http")]
    with echo_server() as (port, _):
        stage = Stage(tmp_path, port, "- {}")
        with stage.proxy, futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda path: stage.raw(CURL % path), origin))
    for path, answer in zip(origin, answers, strict=True):
        head, _, body = answer.partition(b"\r\n\r\n")
        forwarded = body.split(b" ")[1] if head.startswith(b"HTTP/1.1 200") else None
        if forwarded is None:
            assert head.startswith(b"HTTP/1.1 400"), (path, head)
        assert forwarded == REPAIRED.get(path, normalize_path(path)), path


@pytest.mark.parametrize(
    "data",
    [
        b"POST /public HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n",
        b"POST /public HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"GET /public HTTP/1.1\r\nhost : h\r\n\r\n",
        b"GET /public HTTP/1.1\r\nhost: h\r\nhost: j\r\nconnection: close\r\n\r\n",
        b"POST /public HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent_length: 0\r\n"
        b"connection: close\r\n\r\nhello",
        b"GET /public HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n",
        b"POST /public HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, x\r\n\r\n0\r\n\r\n",
        b"POST /public HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n",
        b"GET /public\x01 HTTP/1.1\r\nhost: h\r\n\r\n",
    ],
)
def test_smuggling(stage: Stage, got: tuple[int, list[bytes]], data: bytes) -> None:
    before = len(got[1])
    assert stage.raw(data)[9:12] in (b"400", b"501")
    assert not any(b"smuggled" in head for head in got[1][before:])


def test_a_bare_cr_does_not_reach_the_server(stage: Stage, got: tuple[int, list[bytes]]) -> None:
    before = len(got[1])
    stage.raw(b"GET /public HTTP/1.1\r\nhost: h\r\nx: a\rb\r\nconnection: close\r\n\r\n")
    assert b"\r" not in b"".join(b"".join(got[1][before:]).split(b"\r\n"))


def test_requests_in_one_connection_are_judged_one_by_one(stage: Stage) -> None:
    reply = stage.raw(b"GET /private HTTP/1.1\r\nhost: h\r\n\r\n" + CURL % b"/public")
    assert re.findall(rb"HTTP/1.1 (\d{3}) ", reply) == [b"403", b"200"]


def test_websocket(tmp_path: Path) -> None:
    """Judged by its request; what follows the 101 passes as it is."""
    hello = (
        b"GET %s HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n"
    )

    def serve(listener: socket.socket) -> None:
        listener.accept()[0].close()  # The proxy looks whether anybody is there.
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"
                b"connection: upgrade\r\n\r\n"
            )
            while got := connection.recv(100):
                connection.sendall(got.upper())

    with socket.create_server((SERVER, 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        stage = Stage(tmp_path, listener.getsockname()[1], "- {path: /ws}")
        with stage.proxy:
            assert stage.raw(hello % b"/other")[9:12] == b"403"
            where = (SERVER, stage.proxy.address.port)
            with socket.create_connection(where, timeout=10) as connection:
                connection.sendall(hello % b"/ws")
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 101")
                connection.sendall(b"\x81\x00hello")
                assert connection.recv(100) == b"\x81\x00HELLO"
            assert stage.entries("/ws", 2)[1].http.status == 101


# gRPC: the source documents' service.


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield b"re: " + request

    handlers = {
        "GetName": grpc.unary_unary_rpc_method_handler(lambda request, context: b"name " + request),
        "GetAge": grpc.unary_unary_rpc_method_handler(lambda request, context: b"7"),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("gmem.UserManager", handlers),)
    )
    port = server.add_insecure_port(f"{SERVER}:0")
    server.start()
    stage = Stage(tmp_path_factory.mktemp("grpc"), port, GRPC_RULES)
    with stage.proxy:
        yield stage
    server.stop(0)


@pytest.fixture
def channel(users: Stage) -> Iterator[grpc.Channel]:
    target = users.url.removeprefix("http://")
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def call(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(f"/gmem.UserManager/{method}")(b"1", timeout=10)


def test_grpc(users: Stage, channel: grpc.Channel) -> None:
    assert call(channel, "GetName") == b"name 1"
    with pytest.raises(grpc.RpcError) as denied:
        call(channel, "GetAge")
    assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert call(channel, "GetName") == b"name 1"
    request, response = users.entries("/gmem.UserManager/GetName", 4)[:2]
    assert request.http.http_protocol == 2
    assert response.http.fields == {"grpc_status": "0"}
    assert response.latency > 0
    assert users.entries("/gmem.UserManager/GetAge", 1)[0].entry_type == Denied


def test_an_open_connection_sees_new_rules_with_its_next_stream(
    users: Stage, channel: grpc.Channel
) -> None:
    chat = channel.stream_stream("/gmem.UserManager/Chat")
    words = iter([b"a", b"b"])
    told = threading.Event()

    def say() -> Iterator[bytes]:
        yield next(words)
        told.wait(20)
        yield next(words)

    replies = chat(say(), timeout=30)
    assert next(replies) == b"re: a"
    users.change("- {method: POST, path: /gmem.UserManager/GetAge}")
    assert call(channel, "GetAge") == b"7"
    with pytest.raises(grpc.RpcError) as denied:
        call(channel, "GetName")
    assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
    told.set()
    assert next(replies) == b"re: b", "a stream that was allowed goes on"
    users.change(GRPC_RULES)
    assert call(channel, "GetName") == b"name 1"
    addresses = {entry.source_address for entry in users.log[-2:]}
    assert len(addresses) == 1


FRAGILE = """
from typing import Any

from proxylib import HttpRule, Parser, parser

class Fragile(HttpRule):
    @classmethod
    def compile(cls, rules: Any, *, deny: bool = False) -> Any:
        inner = HttpRule.compile(rules, deny=deny)

        def match(request: Any) -> Any:
            if request["path"] == b"/panic":
                raise RuntimeError("a broken rule")
            return inner(request)

        return match

@parser("fragile-http")
class FragileHttp(Parser):
    Rule = Fragile

    def on_data(self, reply: bool, end_stream: bool, data: Any) -> Any:
        raise NotImplementedError
"""


def test_a_rule_that_panics_denies_its_request_and_nothing_else(tmp_path: Path) -> None:
    module = tmp_path / "fragile.py"
    module.write_text(FRAGILE)
    document = tmp_path / "policy.yaml"
    log: list[LogEntry] = []
    with echo_server() as (port, heads):
        kind = "l7proto: fragile-http\n        l7:"
        document.write_text(policy(port, "- {method: GET}", kind))
        (tmp_path / "endpoints.yaml").write_text(
            f"endpoints: [{{address: {SERVER}, labels: {{app: web}}}}]\n"
        )
        config = ProxyConfig(
            choose_parser(str(module)),
            Address(SERVER, 0),
            Address(SERVER, port),
            policies=(document,),
            endpoints=tmp_path / "endpoints.yaml",
            codec="auto",
        )
        with Proxy(config, on_entries=log.extend) as proxy:
            url = f"http://{SERVER}:{proxy.address.port}"
            with httpx.Client(timeout=10) as client:
                statuses = [client.get(url + path).status_code for path in ("/a", "/panic", "/a")]
        assert statuses == [200, 403, 200]
        assert len(heads) == 2
    (denied,) = [entry for entry in log if entry.entry_type == Denied]
    assert denied.http.path == "/panic"
    assert denied.http.fields["reason"].startswith("Panic: RuntimeError: a broken rule")
