"""Real HTTP servers behind a stock Envoy, with real clients and hostile ones."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websockets.sync.client
import yaml
from websockets.exceptions import InvalidStatus

from benchmarks.tools import free_port, rss_kib
from demos.servers.nginx import nginx
from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from proxylib.proto.accesslog_pb2 import Denied, HttpProtocol, LogEntry, Request, Response
from tests.integration.http_servers import Seen, application
from tests.integration.waiting import until
from tests.parsers.http.test_smuggling import HEADS

SERVER = "127.0.8.1"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules:
            l7proto: http
            l7: {rules}
"""

PUBLIC = '[{method: GET|HEAD|PUT|POST, path: "/public.*|/stream|/status/.*"}]'


@contextmanager
def under_policy(
    server: Address, folder: Path, rules: str
) -> Iterator[tuple[Proxy, list[LogEntry]]]:
    """A proxy in front of `server`, and what it logs."""
    policy, endpoints = folder / "policy.yaml", folder / "endpoints.yaml"
    policy.write_text(POLICY.format(port=server.port, rules=rules))
    endpoints.write_text(f"endpoints: [{{address: {SERVER}, labels: {{app: web}}}}]\n")
    config = ProxyConfig(
        choose_parser("http"),
        Address(SERVER, 0),
        server,
        policies=(policy,),
        endpoints=endpoints,
        watch=False,
    )
    log: list[LogEntry] = []
    with Proxy(config, on_entries=log.extend) as proxy:
        yield proxy, log


class Judged:
    """A proxy under PUBLIC, what it logged, what the application was asked, and connections."""

    def __init__(self, proxy: Proxy, log: list[LogEntry], seen: Seen) -> None:
        self.proxy = proxy
        self.log = log
        self.seen = seen

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(SERVER, self.proxy.address.port, timeout=10)

    def connect(self) -> socket.socket:
        connection = socket.create_connection((SERVER, self.proxy.address.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    server = Address(SERVER, free_port(SERVER))
    folder = tmp_path_factory.mktemp("judged")
    with application(server) as seen, under_policy(server, folder, PUBLIC) as (proxy, log):
        yield Judged(proxy, log, seen)


def read(connection: socket.socket, until_text: bytes = b"") -> bytes:
    """What comes up to `until_text`, or to the end."""
    data = b""
    while not (until_text and data.endswith(until_text)):
        try:
            got = connection.recv(65536)
        except ConnectionResetError:
            break
        if not got:
            break
        data += got
    return data


def curl(proxy: Proxy, path: str, *options: str) -> str:
    """What curl prints for the status."""
    assert shutil.which("curl"), "install curl"
    url = f"http://{SERVER}:{proxy.address.port}{path}"
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


HEADER = ("-H", "X-My-Header: true")
GUIDE = Path(__file__).parents[2] / "docs" / "http.md"


def rules_of_the_guide() -> str:
    """The rules in docs/http.md, in YAML's flow style."""
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (entry,) = yaml.safe_load(block)["toPorts"]
    assert entry["rules"]["l7proto"] == "http"
    return json.dumps(entry["rules"]["l7"])


POLICIES = {
    "GET of /public only": (
        '[{method: GET, path: "/public"}]',
        {
            ("/public",): "200",
            ("/",): "403",
            ("/public/",): "403",
            ("/public", "-I"): "403",
            ("/public", "-d", "x"): "403",
            ("/x/../public",): "200",
            ("/public/../index.html",): "403",
            ("//public",): "200",
            ("/public%2f..%2findex.html",): "400",
        },
    ),
    "a token in every request": (
        '[{headers: "X-Token: [0-9]+"}]',
        {
            ("/public", "-H", "X-Token: 42"): "200",
            ("/public", "-H", "X-Token: x42"): "403",
            ("/public", "-H", "x-token: 42", "-I"): "200",
            ("/public",): "403",
        },
    ),
    "paths and a header": (
        rules_of_the_guide(),
        {
            ("/path1",): "200",
            ("/path1x",): "403",
            ("/path2", "-X", "PUT", *HEADER): "405",
            ("/path2", "-X", "PUT"): "403",
            ("/path2", "-X", "PUT", "-H", "X-My-Header: false"): "403",
            ("/path2", *HEADER): "403",
        },
    ),
    "everything": (
        "[{}]",
        {("/public",): "200", ("/none",): "404", ("/path2", "-X", "PUT"): "405"},
    ),
}


@pytest.mark.parametrize(("rules", "codes"), POLICIES.values(), ids=POLICIES.keys())
def test_policies_in_front_of_nginx(
    rules: str, codes: dict[tuple[str, ...], str], tmp_path: Path
) -> None:
    """nginx knows no PUT of files, which is 405 (not 403, which is ours)."""
    server = Address(SERVER, free_port(SERVER))
    files = dict.fromkeys(("public", "path1", "path2", "index.html"), b"hello")
    with (
        nginx(server, tmp_path, files),
        under_policy(server, tmp_path, rules) as (proxy, log),
    ):
        found = {words: curl(proxy, *words) for words in codes}
        assert found == codes
        answered = len(codes)
        until(lambda: sum(entry.entry_type != Request for entry in log) >= answered)
    denied = sum(entry.entry_type == Denied for entry in log)
    assert denied == sum(code in ("403", "400") for code in codes.values())


def test_a_denied_client_reads_access_denied(judged: Judged) -> None:
    client = judged.client()
    for _ in range(3):
        client.request("POST", "/private", body=b"x" * 100_000)
        reply = client.getresponse()
        assert (reply.status, reply.read()) == (403, b"Access denied\r\n")
        client.request("POST", "/public", body=b"y" * 100_000)
        reply = client.getresponse()
        assert (reply.status, reply.read()) == (200, b"y" * 100_000)
    client.close()


@pytest.mark.parametrize("size", [0, 1, 16_384, 1_000_000])
def test_bodies_of_any_size_in_chunks(judged: Judged, size: int) -> None:
    client = judged.client()
    for path, status in (("/private", 403), ("/public", 200)):
        pieces = [b"z" * 10_000] * (size // 10_000) + [b"z" * (size % 10_000)]
        client.request("PUT", path, body=iter(pieces), encode_chunked=True)
        reply = client.getresponse()
        assert reply.status == status
        expected = b"z" * size or b"hello"
        assert reply.read() == (expected if status == 200 else b"Access denied\r\n")
    client.close()


def test_replies_of_all_kinds_on_one_connection(judged: Judged) -> None:
    client = judged.client()
    for method, path, size in [
        ("GET", "/stream", 100_000),
        ("HEAD", "/public", 0),
        ("GET", "/status/204", 0),
        ("GET", "/status/304", 0),
        ("HEAD", "/stream", 0),
        ("GET", "/status/500", 5),
        ("GET", "/public/a", 5),
    ]:
        client.request(method, path)
        reply = client.getresponse()
        assert len(reply.read()) == size, path
    client.close()


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_pipelined(judged: Judged, cut: int) -> None:
    """Denials stand among the replies, also behind the chunks of a long one."""
    host = b" HTTP/1.1\r\nHost: a\r\n"
    requests = [
        b"GET /public/1" + host + b"\r\n",
        b"GET /private" + host + b"\r\n",
        b"GET /stream" + host + b"\r\n",
        b"POST /private" + host + b"Content-Length: 9\r\n\r\nGET /publ",
        b"POST /public" + host + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /private" + host + b"Connection: close\r\n\r\n",
    ]
    data = b"".join(requests)
    with judged.connect() as connection:
        step = cut or len(data)
        for i in range(0, len(data), step):
            connection.sendall(data[i : i + step])
        reply = read(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", reply) == [b"200", b"403", b"200", b"403", b"200", b"403"]
    assert reply.endswith(b"Access denied\r\n")


def test_curl_waits_for_100(judged: Judged, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 2_000_000)
    options = ("-T", str(upload), "-H", "Expect: 100-continue", "--expect100-timeout", "20")
    assert curl(judged.proxy, "/public/up", *options, "--max-time", "15") == "200"
    method, path, headers, content = judged.seen.requests[-1]
    assert (method, path, len(content)) == ("PUT", "/public/up", 2_000_000)
    assert "expect" not in headers
    assert curl(judged.proxy, "/private/up", *options, "--max-time", "15") == "403"


def test_a_websocket(judged: Judged) -> None:
    url = f"ws://{SERVER}:{judged.proxy.address.port}"
    with websockets.sync.client.connect(f"{url}/public/ws", proxy=None) as connection:
        for text in ("hello", "x" * 100_000):
            connection.send(text)
            assert connection.recv() == text.upper()
    with pytest.raises(InvalidStatus, match="403"):
        websockets.sync.client.connect(f"{url}/private", proxy=None)


def test_http2_is_not_switched_to(judged: Judged) -> None:
    """curl offers h2c; the server never hears of it."""
    assert curl(judged.proxy, "/public", "--http2") == "200"
    assert "upgrade" not in judged.seen.requests[-1][2]
    assert curl(judged.proxy, "/public", "--http2-prior-knowledge") == "000"


def test_the_server_gets_the_path_that_was_judged(judged: Judged) -> None:
    assert curl(judged.proxy, "/x/%2e%2e//public/./%61?q=/../x") == "200"
    assert judged.seen.requests[-1][1] == "/public/a"
    assert curl(judged.proxy, "/public/../private") == "403"


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
def test_smuggling(judged: Judged, data: bytes) -> None:
    """400, closed, in the log, and the server has not been asked anything."""
    asked, logged = len(judged.seen.requests), len(judged.log)
    with judged.connect() as connection:
        source = "{}:{}".format(*connection.getsockname())
        connection.sendall(data + b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
        reply = read(connection)
    assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert reply.count(b"HTTP/1.1") == 1
    assert len(judged.seen.requests) == asked
    until(lambda: any(e.source_address == source for e in judged.log[logged:]))
    (entry,) = (e for e in judged.log[logged:] if e.source_address == source)
    assert entry.entry_type == Denied


def test_a_bad_request_behind_a_good_one(judged: Judged) -> None:
    """Each has its answer, and only then the connection closes."""
    with judged.connect() as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        reply = read(connection)
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n0\r\n\r\nHTTP/1.1 400 Bad Request\r\n" in reply
    assert reply.endswith(b"\r\n\r\nBad request\r\n")


def test_announced_and_unsent_bodies_cost_no_memory(judged: Judged) -> None:
    before = rss_kib(judged.proxy.pid)
    connections = [judged.connect() for _ in range(100)]
    for number, connection in enumerate(connections):
        path = b"/public" if number % 2 else b"/private"
        connection.sendall(
            b"PUT %b HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\nx" % path
        )
    assert read(connections[0], b"Access denied\r\n").startswith(b"HTTP/1.1 403")
    assert rss_kib(judged.proxy.pid) - before < 32 << 10
    for connection in connections:
        connection.close()


def test_the_log_of_an_exchange(judged: Judged) -> None:
    client = judged.client()
    client.request("GET", "/status/404", headers={"Authorization": "Bearer 42", "X-Token": "1"})
    source = "{}:{}".format(*client.sock.getsockname())
    assert client.getresponse().read() == b"hello"
    client.request("DELETE", "/public")
    assert client.getresponse().status == 403
    client.close()

    def entries() -> list[LogEntry]:
        return [entry for entry in judged.log if entry.source_address == source]

    until(lambda: len(entries()) >= 3)
    request, response, denied = entries()
    kinds = (request.entry_type, response.entry_type, denied.entry_type)
    assert kinds == (Request, Response, Denied)
    host = f"{SERVER}:{judged.proxy.address.port}"
    for entry in (request, response):
        asked = (entry.http.method, entry.http.path, entry.http.host, entry.http.scheme)
        assert asked == ("GET", "/status/404", host, "http")
    headers = {pair.key: pair.value for pair in request.http.headers}
    assert (headers["x-token"], headers["authorization"]) == ("1", "[redacted]")
    assert HttpProtocol.Name(request.http.http_protocol) == "HTTP11"
    assert (response.http.status, denied.http.status) == (404, 403)
    assert 0 < response.latency < 10**10
    assert denied.http.method == "DELETE"
