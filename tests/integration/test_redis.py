"""A real redis-server behind a stock Envoy, with redis-py and raw connections."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import ExecAbortError, NoPermissionError, ResponseError

from benchmarks.tools import free_port
from node.address import Address
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from parsers.redis.commands import COMMANDS, CONTAINERS, command_of
from parsers.redis.keys import locate, reach
from proxylib.proto.accesslog_pb2 import LogEntry
from scripts.redis_commands import TARGET, table
from tests.integration.waiting import until
from tests.parsers.redis.wire import request

SERVER = "127.0.7.21"
PASSWORD = "open-sesame"
DENIED = b"-NOPERM access denied by policy\r\n"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: app}}
spec:
  endpointSelector: {{matchLabels: {{app: redis}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules:
            l7proto: redis
            l7:
              - {{category: read, keyPrefix: "app:"}}
              - {{category: write, keyPrefix: "app:"}}
              - {{category: scripting, keyPrefix: "app:"}}
              - {{category: connection}}
              - {{category: transaction}}
              - {{category: pubsub}}
              - {{command: CONFIG|GET}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    assert shutil.which("redis-server"), "install redis-server"
    address = Address(SERVER, free_port(SERVER))
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--bind", SERVER, "--port", str(address.port), "--save", ""]
    command += ["--requirepass", PASSWORD, "--dir", str(folder), "--enable-debug-command", "yes"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: accepts(address))
        yield address
    finally:
        process.terminate()
        process.wait(10)


def accepts(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError:
        return False
    return True


class Judged:
    """A proxy under POLICY, what it logged, and clients of it."""

    def __init__(self, proxy: Proxy, log: list[LogEntry]) -> None:
        self.proxy = proxy
        self.log = log

    def client(self, protocol: int = 2, **options: Any) -> redis.Redis:
        port = self.proxy.address.port
        return redis.Redis(
            SERVER, port, password=PASSWORD, protocol=protocol, socket_timeout=10, **options
        )

    def connect(self) -> socket.socket:
        connection = socket.create_connection((SERVER, self.proxy.address.port), timeout=10)
        connection.sendall(request("AUTH", PASSWORD))
        assert connection.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"
        return connection


@pytest.fixture(scope="module")
def judged(server: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged")
    policy, endpoints = folder / "policy.yaml", folder / "endpoints.yaml"
    policy.write_text(POLICY.format(port=server.port))
    endpoints.write_text(f"endpoints: [{{address: {SERVER}, labels: {{app: redis}}}}]\n")
    config = ProxyConfig(
        choose_parser("redis"),
        Address(SERVER, 0),
        server,
        policies=(policy,),
        endpoints=endpoints,
        watch=False,
    )
    log: list[LogEntry] = []
    with Proxy(config, on_entries=log.extend) as proxy:
        yield Judged(proxy, log)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def client(judged: Judged, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    with judged.client(request.param, decode_responses=True) as client:
        yield client


@pytest.fixture
def direct(server: Address) -> Iterator[redis.Redis]:
    """A client of the server itself."""
    with redis.Redis(SERVER, server.port, password=PASSWORD, decode_responses=True) as client:
        client.flushall()
        client.set("secret", "s3cret")
        yield client


def exchange(connection: socket.socket, sent: bytes, size: int) -> bytes:
    """Send, and read `size` bytes of reply."""
    connection.sendall(sent)
    return connection.recv(size, socket.MSG_WAITALL)


def test_keys_under_the_prefix(client: redis.Redis, direct: redis.Redis) -> None:
    assert client.set("app:a", "1")
    assert client.get("app:a") == "1"
    client.hset("app:h", mapping={"x": "1", "y": "2"})
    assert client.hgetall("app:h") == {"x": "1", "y": "2"}
    client.zadd("app:z", {"m": 1.5})
    assert client.zscore("app:z", "m") == 1.5
    with pytest.raises(NoPermissionError, match="denied by policy"):
        client.get("secret")
    with pytest.raises(NoPermissionError):
        client.rename("app:a", "secret")
    with pytest.raises(NoPermissionError):
        client.zunionstore("app:u", ["app:z", "secret"])
    with pytest.raises(NoPermissionError):
        client.flushall()
    with pytest.raises(NoPermissionError):
        client.config_set("maxmemory", "1")
    assert "maxmemory" in client.config_get("maxmemory")
    assert direct.get("secret") == "s3cret"


def test_scripts_on_their_keys(client: redis.Redis, direct: redis.Redis) -> None:
    script = "return redis.call('SET', KEYS[1], ARGV[1])"
    client.eval(script, 1, "app:s", "v")
    assert direct.get("app:s") == "v"
    with pytest.raises(NoPermissionError):
        client.eval(script, 1, "secret", "v")


def test_pipelines_keep_their_order(client: redis.Redis, direct: redis.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for i in range(500):
        pipe.set(f"app:{i}", i)
        pipe.get("secret" if i % 7 == 0 else f"app:{i}")
    results = pipe.execute(raise_on_error=False)
    for i, (stored, got) in enumerate(zip(results[::2], results[1::2], strict=True)):
        assert stored is True
        assert isinstance(got, NoPermissionError) if i % 7 == 0 else got == str(i)


def test_a_transaction_with_a_denied_command_fails(
    client: redis.Redis, direct: redis.Redis
) -> None:
    pipe = client.pipeline(transaction=True)
    pipe.set("app:a", "1").incr("app:a")
    assert pipe.execute() == [True, 2]
    pipe.set("app:a", "9").set("secret", "mine").incr("app:a")
    with pytest.raises(ResponseError) as raised:
        pipe.execute()
    assert isinstance(raised.value, (NoPermissionError, ExecAbortError))
    assert direct.mget("app:a", "secret") == ["2", "s3cret"]
    with client.pipeline() as pipe:
        pipe.watch("app:a")
        direct.set("app:a", "5")
        pipe.multi()
        pipe.set("app:a", "6")
        with pytest.raises(redis.WatchError):
            pipe.execute()


def test_exec_aborts(judged: Judged, direct: redis.Redis) -> None:
    with judged.connect() as connection:
        sent = b"MULTI\r\nSET app:a 1\r\nSET secret 2\r\nEXEC\r\nGET app:a\r\nGET secret\r\n"
        expected = b"+OK\r\n+QUEUED\r\n" + DENIED
        expected += b"-EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n"
        expected += DENIED
        assert exchange(connection, sent, len(expected)) == expected


def test_subscriptions(client: redis.Redis, direct: redis.Redis) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("one", "two")
        pubsub.psubscribe("p*")
        kinds = [pubsub.get_message(timeout=10) for _ in range(3)]
        assert [m["type"] for m in kinds] == ["subscribe", "subscribe", "psubscribe"]
        direct.publish("one", "x" * 100_000)
        direct.publish("pets", "cat")
        messages = [pubsub.get_message(timeout=10) for _ in range(2)]
        assert [m["type"] for m in messages] == ["message", "pmessage"]
        assert [len(m["data"]) for m in messages] == [100_000, 3]
        pubsub.unsubscribe()
        left = [pubsub.get_message(timeout=10)["type"] for _ in range(2)]
        assert left == ["unsubscribe"] * 2


def test_resp3_pushes_between_replies(judged: Judged, direct: redis.Redis) -> None:
    """One connection subscribes, asks, and is denied, while messages come."""
    with judged.connect() as connection:
        stream = connection.makefile("rb")
        connection.sendall(b"HELLO 3\r\nSUBSCRIBE news\r\n")
        while b"subscribe" not in stream.readline():
            pass
        assert [stream.readline() for _ in range(3)] == [b"$4\r\n", b"news\r\n", b":1\r\n"]
        seen = {"message": 0, "reply": 0, "denied": 0}
        publisher = threading.Thread(
            target=lambda: [direct.publish("news", "n" * 5000) for _ in range(300)]
        )
        publisher.start()
        for _ in range(300):
            connection.sendall(b"SET app:n 1\r\nGET secret\r\n")
        while sum(seen.values()) < 900:
            line = stream.readline()
            if line == b">3\r\n":
                rest = [stream.readline() for _ in range(6)]
                assert rest[1] == b"message\r\n"
                assert rest[5] == b"n" * 5000 + b"\r\n"
                seen["message"] += 1
            else:
                seen["denied" if line == DENIED else "reply"] += 1
                assert line in (DENIED, b"+OK\r\n")
        publisher.join()
        assert seen == {"message": 300, "reply": 300, "denied": 300}


def test_a_blocking_pop(client: redis.Redis, direct: redis.Redis) -> None:
    timer = threading.Timer(0.2, lambda: direct.rpush("app:queue", "job"))
    timer.start()
    got = client.blpop(["app:queue"], timeout=10)
    assert tuple(got) == ("app:queue", "job")
    timer.join()
    with pytest.raises(NoPermissionError):
        client.blpop(["app:queue", "secret"], timeout=1)


def test_streams(client: redis.Redis, direct: redis.Redis) -> None:
    client.xadd("app:stream", {"k": "v"})
    assert client.xread({"app:stream": "0"})
    with pytest.raises(NoPermissionError):
        client.xread({"app:stream": "0", "secret": "0"})


def test_large_values(judged: Judged, direct: redis.Redis) -> None:
    value = bytes(range(256)) * (1 << 15)
    with judged.client() as client:
        client.set("app:big", value)
        assert client.get("app:big") == value
        with pytest.raises(NoPermissionError):
            client.set("secret", value)
        assert client.get("app:big") == value
        client.rpush("app:list", *range(20_000))
        assert len(client.lrange("app:list", 0, -1)) == 20_000


def test_every_type_of_resp3(direct: redis.Redis, server: Address) -> None:
    """Redis's own samples of its types, and MONITOR, under a policy that allows everything."""
    with (
        Proxy(ProxyConfig(choose_parser("redis"), Address(SERVER, 0), server)) as proxy,
        redis.Redis(SERVER, proxy.address.port, password=PASSWORD, protocol=3) as client,
    ):
        kinds = ("string", "integer", "double", "null", "array", "set", "map", "attrib", "push")
        for kind in (*kinds, "verbatim", "true", "false", "bignum"):
            with socket.create_connection((SERVER, proxy.address.port), timeout=10) as connection:
                hello = request("HELLO", "3", "AUTH", "default", PASSWORD)
                connection.sendall(hello + request("DEBUG", "PROTOCOL", kind) + b"PING\r\n")
                reply = b""
                while not reply.endswith(b"+PONG\r\n"):
                    got = connection.recv(4096)
                    assert got, (kind, reply)
                    reply += got
        assert len(client.execute_command("COMMAND")) > 200
        with client.monitor() as monitor:
            direct.get("secret")
            assert "GET secret" in monitor.next_command()["command"]


def test_the_table_is_what_the_server_says(direct: redis.Redis, server: Address) -> None:
    version = direct.info("server")["redis_version"]
    with redis.Redis(SERVER, server.port, password=PASSWORD, protocol=2) as client:
        made = table(client)
    if f"Redis {version}." in TARGET.read_text():
        assert made == TARGET.read_text()
    else:
        # Another release: it adds commands, and takes none away.
        assert len(made.splitlines()) >= 300


WORDS = b"k1 k2 1 2 3 0 -1 # STREAMS GROUP STORE STOREDIST BY GET COUNT BLOCK KEYS COPY AUTH NOACK"
MOVABLE = [
    b"XREAD",
    b"XREADGROUP",
    b"SORT",
    b"MIGRATE",
    b"GEORADIUS",
    b"GEORADIUSBYMEMBER",
    b"EVAL",
]


def test_keys_are_where_the_server_finds_them(server: Address) -> None:
    """Whatever the server takes for a key, we do, or say that there are hidden ones."""
    rng = random.Random(7)
    names = sorted(COMMANDS.keys() - CONTAINERS)
    found = 0
    with redis.Redis(SERVER, server.port, password=PASSWORD, protocol=2) as client:
        client.response_callbacks.clear()
        for _ in range(8000):
            name = rng.choice(names if rng.random() < 0.4 else MOVABLE)
            args = name.split(b"|") + rng.choices([b"", *WORDS.split()], k=rng.randrange(9))
            command = command_of(args)
            seen = args[:1]
            while (wanted := reach(command, seen, len(args))) > len(seen):
                seen = args[:wanted]
            ours = locate(command, seen, len(args))
            assert ours == locate(command, args, len(args))
            try:
                theirs = client.execute_command("COMMAND GETKEYS", *args)
            except ResponseError:
                continue
            found += 1
            assert ours.hidden or set(theirs) <= set(ours.keys), args
    assert found > 1000


def test_what_is_no_resp_closes(judged: Judged) -> None:
    with judged.connect() as connection:
        connection.sendall(b"*2\r\n$03\r\nGET\r\n$6\r\nsecret\r\n")
        assert connection.recv(100) == b""


def test_the_log_has_status_and_latency_but_no_password(
    judged: Judged, direct: redis.Redis
) -> None:
    with judged.client(3) as client:
        client.get("app:nothing")
        time.sleep(0.01)
        client.execute_command("AUTH", PASSWORD)

    def statuses() -> dict[bytes | str, str]:
        replies = [entry.generic_l7.fields for entry in judged.log if entry.entry_type == 1]
        return {fields["command"]: fields["status"] for fields in replies if "status" in fields}

    until(lambda: "HELLO" in statuses() and "AUTH" in statuses())
    assert statuses()["AUTH"] == "OK"
    assert not any(PASSWORD in str(entry) for entry in judged.log)
