"""A real memcached behind a stock Envoy, with real clients and hostile ones."""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheClientError

from benchmarks.tools import free_port, rss_kib
from demos.memcached import memcached
from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from proxylib.proto.accesslog_pb2 import Denied as DENIED_ENTRY
from proxylib.proto.accesslog_pb2 import LogEntry
from tests.integration.waiting import until

SERVER = "127.0.7.1"
DENIED = b"CLIENT_ERROR access denied\r\n"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: fleet}}
spec:
  endpointSelector: {{matchLabels: {{app: memcached}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules:
            l7proto: memcache
            l7:
              - {{command: writeGroup, keyPrefix: fleet/}}
              - {{command: get, keyRegex: "^fleet/[a-z0-9]+$"}}
              - {{command: noop}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    address = Address(SERVER, free_port(SERVER))
    with memcached(address):
        yield address


@pytest.fixture(scope="module")
def open_proxy(server: Address) -> Iterator[Proxy]:
    """Everything is allowed."""
    config = ProxyConfig(choose_parser("memcache"), Address(SERVER, 0), server)
    with Proxy(config) as proxy:
        yield proxy


class Judged:
    """A proxy under POLICY, what it logged, and raw connections to it."""

    def __init__(self, proxy: Proxy, log: list[LogEntry]) -> None:
        self.proxy = proxy
        self.log = log

    def connect(self) -> socket.socket:
        connection = socket.create_connection((SERVER, self.proxy.address.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def client(self) -> Client:
        return Client((SERVER, self.proxy.address.port), timeout=10, connect_timeout=10)


def under_policy(folder: Path, server: Address) -> ProxyConfig:
    """A proxy in front of `server` under POLICY, its documents in `folder`."""
    policy, endpoints = folder / "policy.yaml", folder / "endpoints.yaml"
    policy.write_text(POLICY.format(port=server.port))
    endpoints.write_text(f"endpoints: [{{address: {SERVER}, labels: {{app: memcached}}}}]\n")
    return ProxyConfig(
        choose_parser("memcache"),
        Address(SERVER, 0),
        server,
        policies=(policy,),
        endpoints=endpoints,
        watch=False,
    )


@pytest.fixture(scope="module")
def judged(server: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    config = under_policy(tmp_path_factory.mktemp("judged"), server)
    log: list[LogEntry] = []
    with Proxy(config, on_entries=log.extend) as proxy:
        yield Judged(proxy, log)


def exchange(connection: socket.socket, request: bytes, size: int) -> bytes:
    """Send, and read `size` bytes of reply (fewer if the connection ends)."""
    connection.sendall(request)
    reply = b""
    while len(reply) < size and (got := connection.recv(size - len(reply))):
        reply += got
    return reply


def test_memccapable_passes(open_proxy: Proxy) -> None:
    """libmemcached's own check of a server: 54 tests of both protocols."""
    assert shutil.which("memccapable"), "install libmemcached-tools"
    done = subprocess.run(
        ["memccapable", "-h", SERVER, "-p", str(open_proxy.address.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    passed = re.findall(r"\[pass\]", done.stdout + done.stderr)
    assert (done.returncode, len(passed)) == (0, 54), done.stdout + done.stderr


PIPELINES = [
    (
        "a denial stands among the replies",
        b"set fleet/a 0 0 1\r\n1\r\nget secret\r\nget fleet/a\r\n",
        b"STORED\r\n" + DENIED + b"VALUE fleet/a 0 1\r\n1\r\nEND\r\n",
    ),
    (
        "a denied value is not read as commands",
        b"set secret 0 0 15\r\nset fleet/b 0 0\r\nget fleet/b\r\n",
        DENIED + b"END\r\n",
    ),
    (
        "several keys are allowed only together",
        b"get fleet/a secret\r\nget fleet/a fleet/none\r\n",
        DENIED + b"VALUE fleet/a 0 1\r\n1\r\nEND\r\n",
    ),
    (
        "quiet meta requests keep the order",
        b"mg fleet/a v q\r\nmg secret v\r\nmn\r\n",
        b"VA 1\r\n1\r\n" + DENIED + b"MN\r\n",
    ),
    (
        "noreply is answered by nobody",
        b"set secret 0 0 1 noreply\r\nx\r\nset fleet/c 0 0 1 noreply\r\nx\r\nget fleet/c\r\n",
        b"VALUE fleet/c 0 1\r\nx\r\nEND\r\n",
    ),
    ("an unknown command is denied", b"frobnicate\r\nget fleet/none\r\n", DENIED + b"END\r\n"),
]


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize(
    ("request_bytes", "reply"), [p[1:] for p in PIPELINES], ids=[p[0] for p in PIPELINES]
)
def test_pipelined_replies(judged: Judged, request_bytes: bytes, reply: bytes, cut: int) -> None:
    with judged.connect() as connection:
        step = cut or len(request_bytes)
        pieces = [request_bytes[i : i + step] for i in range(0, len(request_bytes), step)]
        for piece in pieces[:-1]:
            connection.sendall(piece)
        assert exchange(connection, pieces[-1], len(reply)) == reply


def test_binary_denials_echo_opcode_and_opaque(judged: Judged) -> None:
    def get(key: bytes, opaque: int) -> bytes:
        return struct.pack(">BBHBBHIIQ", 0x80, 0, len(key), 0, 0, 0, len(key), opaque, 0) + key

    denied = struct.pack(">BBHBBHIIQ", 0x81, 0, 0, 0, 0, 8, 13, 7, 0) + b"access denied"
    with judged.connect() as connection:
        reply = exchange(
            connection,
            get(b"fleet/none", 1) + get(b"secret", 7) + get(b"fleet/none", 2),
            24 * 2 + 18 + len(denied),
        )
    assert [reply.count(struct.pack(">I", n)) for n in (1, 7, 2)] != [0, 0, 0]
    first = 24 + struct.unpack_from(">I", reply, 8)[0]
    assert reply[first : first + len(denied)] == denied
    assert struct.unpack_from(">I", reply, first + len(denied) + 12)[0] == 2


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_536, 1_000_000])
def test_values_of_any_size_arrive(judged: Judged, size: int) -> None:
    client = judged.client()
    value = bytes(range(256)) * (size // 256 + 1)
    assert client.set("fleet/big", value[:size], noreply=False)
    assert client.get("fleet/big") == value[:size]
    with pytest.raises(MemcacheClientError, match="access denied"):
        client.set("secret", value[:size], noreply=False)
    assert client.get("fleet/big") == value[:size]
    client.close()


def test_a_value_too_large_for_memcached(judged: Judged) -> None:
    """memcached refuses and swallows it; the next request is answered as ever."""
    client = judged.client()
    with pytest.raises(Exception, match="too large"):
        client.set("fleet/huge", bytes(3 << 20), noreply=False)
    assert client.get("fleet/none") is None
    client.close()


def test_announced_and_unsent_values_cost_no_memory(judged: Judged) -> None:
    """A hundred clients announce a gigabyte each, allowed or denied, and send one byte."""
    before = rss_kib(judged.proxy.pid)
    connections = [judged.connect() for _ in range(100)]
    for number, connection in enumerate(connections):
        key = b"fleet/x" if number % 2 else b"secret"
        connection.sendall(b"set %s 0 0 999999999\r\nx" % key)
    assert exchange(connections[0], b"", len(DENIED)) == DENIED
    assert rss_kib(judged.proxy.pid) - before < 32 << 10
    for connection in connections:
        connection.close()


LYING = [
    b"set fleet/a 0 0 -99\r\n",
    b"set fleet/a 0 0 +5\r\nhello\r\n",
    b"set fleet/a 0 0 1_0\r\n",
    b"set fleet/a 0 0 99999999999999999999\r\n",
    b"set fleet/a 0 0\r\n",
    b"get " + b"k" * 300 + b"\r\n",
    b"get fleet/\x00a\r\n",
    b"get fleet/\xff\xfe\r\n",
    b"get\xc2\xa0fleet/a\r\n",
    b"gat\r\n",
    b"\r\n",
    b"x" * 100_000,
    b"\x80\x00\xff\xff\xff\x00\x00\x00\xff\xff\xff\xff" + bytes(12),
]


@pytest.mark.parametrize("request_bytes", LYING, ids=[repr(r[:30]) for r in LYING])
def test_hostile_requests(judged: Judged, request_bytes: bytes) -> None:
    """Each is answered with an error or closed; nobody else notices; it is in the log."""
    pid, seen = judged.proxy.pid, len(judged.log)
    with judged.connect() as connection:
        connection.sendall(request_bytes)
        connection.settimeout(5)
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert b"STORED" not in answer
    assert not answer.startswith(b"VALUE")
    until(lambda: any(entry.entry_type == DENIED_ENTRY for entry in judged.log[seen:]))
    client = judged.client()
    assert client.get("fleet/none") is None
    client.close()
    assert judged.proxy.pid == pid


def test_bytes_of_a_key_are_in_the_log(judged: Judged) -> None:
    with judged.connect() as connection:
        assert exchange(connection, b"get \xff\xfe\r\n", len(DENIED)) == DENIED
    until(lambda: any(e.generic_l7.fields["keys"] == r"\xff\xfe" for e in judged.log))


def test_a_thousand_denials_in_one_write(judged: Judged) -> None:
    """More than one inject buffer of the C ABI, and not one missing."""
    with judged.connect() as connection:
        reply = exchange(connection, b"get secret\r\n" * 1000, 1000 * len(DENIED))
    assert reply == DENIED * 1000


def test_the_log_of_an_exchange(judged: Judged) -> None:
    with judged.connect() as connection:
        source = "{}:{}".format(*connection.getsockname())
        exchange(connection, b"get fleet/none\r\n", 5)

    def entries() -> list[LogEntry]:
        return [entry for entry in judged.log if entry.source_address == source]

    until(lambda: len(entries()) >= 2)
    request, response = entries()
    assert (request.entry_type, response.entry_type) == (0, 1)
    assert request.generic_l7.proto == "textmemcached"
    assert dict(request.generic_l7.fields) == {"command": "get", "keys": "fleet/none"}
    assert request.policy_name == SERVER
    assert request.is_ingress
    assert response.generic_l7.fields["status"] == "MISS"


def test_the_policy_stays_when_the_control_server_is_gone(server: Address, tmp_path: Path) -> None:
    with Proxy(under_policy(tmp_path, server)) as proxy:
        proxy.policy.control.stop()
        for _ in range(3):
            with socket.create_connection((SERVER, proxy.address.port), timeout=10) as connection:
                assert exchange(connection, b"get secret\r\n", len(DENIED)) == DENIED
                assert exchange(connection, b"get fleet/none\r\n", 5) == b"END\r\n"
