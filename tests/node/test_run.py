"""`proxylib run`, end to end: a stock Envoy, the library, the control server, the log."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demos.stage import Log, connect, line_server
from node.address import Address
from node.errors import EnvoyDied
from node.parsers import choose_parser
from node.run import Event, Proxy, ProxyConfig
from node.stopping import Stopped, stop_on_signals
from proxylib.accesslog import AccessLogServer
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry
from tests.node.conftest import Command

FREE = Address("127.0.0.1", 0)
CLIENT = "127.0.0.1"
LUKE, VADER = "127.20.0.2", "127.20.0.3"

TIMEOUT = 20.0


class Watcher:
    """Events and entries of a proxy, to wait for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.log = Log()
        self._more = threading.Condition()

    def add(self, event: Event) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()

    def event(self, kind: str, count: int = 1) -> Event:
        """The `count`-th event of `kind`."""
        deadline = time.monotonic() + TIMEOUT
        with self._more:
            while len(found := [e for e in self.events if e.kind == kind]) < count:
                assert self._more.wait(deadline - time.monotonic()), f"{kind}: {self.events}"
            return found[count - 1]

    def kinds(self) -> set[str]:
        return {event.kind for event in self.events}


@contextmanager
def run(upstream: Address, parser: str = "r2d2", **options: Any) -> Iterator[tuple[Proxy, Watcher]]:
    watcher = Watcher()
    settings = {"listen": FREE} | options
    config = ProxyConfig(choose_parser(parser), upstream=upstream, **settings)
    with Proxy(config, on_event=watcher.add, on_entries=watcher.log.add) as proxy:
        yield proxy, watcher


def dialogue(connection: socket.socket, *requests: bytes) -> list[bytes]:
    """Each request's reply, one after the other."""
    replies = connection.makefile("rb")
    received = []
    for request in requests:
        connection.sendall(request)
        received.append(replies.readline())
    return received


def gone(pid: int) -> bool:
    """True once process `pid` is no more (or a zombie that nobody waits for)."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def write_policy(path: Path, port: int, *rules: str, subject: str = "droid") -> None:
    lines = "\n".join(f"        - {rule}" for rule in rules)
    path.write_text(
        f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: droid
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}
  ingress:
  - fromEndpoints:
    - matchLabels: {{name: luke}}
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules:
        l7proto: r2d2
        l7:
{lines}
"""
    )


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    path.write_text(
        f"""
endpoints:
- {{address: 127.0.0.1, labels: {{app: droid}}}}
- {{address: {LUKE}, labels: {{name: luke}}}}
"""
    )
    return path


def test_without_a_policy_everything_passes_and_is_logged(echo: Address) -> None:
    with run(echo) as (proxy, watcher):
        with connect(CLIENT, proxy.address) as client:
            assert dialogue(client, b"HALT\r\n", b"READ x\r\n") == [b"HALT\r\n", b"READ x\r\n"]
            source = client.getsockname()
            for fields in ({"cmd": "HALT", "file": ""}, {"cmd": "READ", "file": "x"}):
                entry = watcher.log.request_of(CLIENT)
                assert entry is not None
                assert entry.entry_type == EntryType.Request
                assert dict(entry.generic_l7.fields) == fields
                assert entry.source_address == f"{source[0]}:{source[1]}"
                assert entry.destination_address == str(echo)
        assert watcher.event("listening").data["pid"] == proxy.pid
        assert watcher.event("rules").data["version"] == 1
        assert watcher.events[-1].kind == "ready"
        pid, folder = proxy.pid, proxy.folder
        assert folder.stat().st_mode & 0o777 == 0o700
    assert gone(pid)
    assert not folder.exists()
    assert "upstream" not in watcher.kinds()


def test_the_rules_of_a_live_connection_change(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    write_policy(policy, echo.port, "{cmd: HALT}")
    with (
        run(echo, policies=(policy,), endpoints=endpoints) as (proxy, watcher),
        connect(LUKE, proxy.address) as luke,
    ):
        assert dialogue(luke, b"HALT\r\n", b"READ x\r\n") == [b"HALT\r\n", b"ERROR\r\n"]

        write_policy(policy, echo.port, "{cmd: READ}")
        assert watcher.event("rules", 2).data["version"] == 2
        assert dialogue(luke, b"HALT\r\n", b"READ x\r\n") == [b"ERROR\r\n", b"READ x\r\n"]

        write_policy(policy, echo.port, "{cmd: REED}")
        bad = watcher.event("bad-edit")
        assert f"{policy}:" in bad.message
        assert "REED" in bad.message
        assert bad.data["version"] == 2
        assert dialogue(luke, b"HALT\r\n", b"READ x\r\n") == [b"ERROR\r\n", b"READ x\r\n"]

        write_policy(policy, echo.port, "{cmd: HALT}", "{cmd: READ}")
        watcher.event("rules", 3)
        assert dialogue(luke, b"HALT\r\n", b"READ x\r\n") == [b"HALT\r\n", b"READ x\r\n"]

        with connect(VADER, proxy.address) as vader:
            assert closed(vader, b"HALT\r\n")
        entry = watcher.log.request_of(VADER)
        assert entry is not None
        assert entry.entry_type == EntryType.Denied
        assert "is not allowed on ingress port" in entry.generic_l7.fields["status"]
    assert "irrelevant-policy" not in watcher.kinds()


def closed(connection: socket.socket, request: bytes) -> bool:
    try:
        connection.sendall(request)
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_edits_are_not_taken_up_without_watching(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    write_policy(policy, echo.port, "{cmd: HALT}")
    with (
        run(echo, policies=(policy,), endpoints=endpoints, watch=False) as (proxy, watcher),
        connect(LUKE, proxy.address) as luke,
    ):
        write_policy(policy, echo.port, "{cmd: READ}")
        time.sleep(1)
        assert dialogue(luke, b"HALT\r\n") == [b"HALT\r\n"]
        proxy.policy.control.reload()
        proxy.policy.wait_in_force(TIMEOUT)
        assert dialogue(luke, b"HALT\r\n") == [b"ERROR\r\n"]
        assert watcher.event("rules", 2).data["version"] == 2


def test_a_policy_about_somebody_else_is_warned_about(echo: Address, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    write_policy(policy, echo.port, "{cmd: HALT}")
    with run(echo, policies=(policy,)) as (proxy, watcher):
        warning = watcher.event("irrelevant-policy")
        assert warning.role == "warning"
        assert "EVERYTHING IS ALLOWED" in warning.message
        with connect(CLIENT, proxy.address) as client:
            assert dialogue(client, b"RESET\r\n") == [b"RESET\r\n"]


def test_a_policy_about_another_port_is_warned_about(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    write_policy(policy, 1, "{cmd: HALT}")
    with run(echo, policies=(policy,), endpoints=endpoints) as (proxy, watcher):
        assert "only about 1: nothing is allowed" in watcher.event("irrelevant-policy").message
        with connect(LUKE, proxy.address) as luke:
            assert closed(luke, b"HALT\r\n")


def test_egress_rules_are_the_clients_own(echo: Address, tmp_path: Path) -> None:
    policy, who = tmp_path / "policy.yaml", tmp_path / "endpoints.yaml"
    policy.write_text(
        f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: luke}}
spec:
  endpointSelector: {{matchLabels: {{name: luke}}}}
  egress:
  - toEndpoints: [{{matchLabels: {{app: droid}}}}]
    toPorts:
    - ports: [{{port: "{echo.port}", protocol: TCP}}]
      rules: {{l7proto: r2d2, l7: [{{cmd: HALT}}]}}
"""
    )
    who.write_text(
        f"""
endpoints:
- {{address: {LUKE}, labels: {{name: luke}}}}
- {{address: {VADER}, labels: {{name: vader}}}}
- {{address: {echo.host}, labels: {{app: droid}}}}
"""
    )
    with run(echo, policies=(policy,), endpoints=who, egress=True) as (proxy, watcher):
        with connect(LUKE, proxy.address) as luke:
            assert dialogue(luke, b"HALT\r\n", b"RESET\r\n") == [b"HALT\r\n", b"ERROR\r\n"]
        with connect(VADER, proxy.address) as vader:
            assert dialogue(vader, b"RESET\r\n") == [b"RESET\r\n"]
        entry = watcher.log.request_of(LUKE)
        assert entry is not None
        assert not entry.is_ingress
        assert entry.policy_name == LUKE
    assert "irrelevant-policy" not in watcher.kinds()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that serves one connection with `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            # The first connection is the proxy's own look whether anybody is there.
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join(TIMEOUT)


def read_all(connection: socket.socket) -> bytes:
    chunks = []
    while data := connection.recv(65536):
        chunks.append(data)
    return b"".join(chunks)


def test_half_close_by_the_client() -> None:
    """The server answers only after the client has said that it has finished."""

    def serve(connection: socket.socket) -> None:
        data = read_all(connection)
        connection.sendall(b"%d bytes\r\n" % len(data))

    with (
        raw_server(serve) as upstream,
        run(upstream) as (proxy, _),
        connect(CLIENT, proxy.address) as client,
    ):
        client.sendall(b"READ x\r\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"8000 bytes\r\n"


def test_half_close_by_the_server() -> None:
    """The client goes on talking after the server has said its last word."""
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"bye\r\n")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))

    with (
        raw_server(serve) as upstream,
        run(upstream) as (proxy, _),
        connect(CLIENT, proxy.address) as client,
    ):
        assert read_all(client) == b"bye\r\n"
        time.sleep(0.1)
        client.sendall(b"HALT\r\n" * 1000)
        client.shutdown(socket.SHUT_WR)
    assert heard == [b"HALT\r\n" * 1000]


def test_resets_in_the_middle_of_a_message_hurt_nobody(echo: Address) -> None:
    with run(echo) as (proxy, _), connect(CLIENT, proxy.address) as calm:
        for _ in range(20):
            with connect(CLIENT, proxy.address) as rude:
                rude.sendall(b"HALT\r\nREAD half-a-me")
                # Linger 0: close sends a reset.
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert dialogue(calm, b"HALT\r\n") == [b"HALT\r\n"]
        assert proxy.envoy.returncode is None


def test_an_upstream_that_is_down_is_seen_and_comes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        upstream = Address("127.0.0.1", taken.getsockname()[1])
    with run(upstream) as (proxy, watcher):
        assert watcher.event("upstream").role == "warning"
        with connect(CLIENT, proxy.address) as client:
            assert closed(client, b"HALT\r\n")
        failure = watcher.event("upstream", 2)
        assert failure.role == "error"
        assert str(upstream) in failure.message
        assert "refused" in failure.message.lower()
        with (
            line_server(upstream, lambda line: line),
            connect(CLIENT, proxy.address) as client,
        ):
            assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]


def test_ipv6_and_names() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        upstream = Address("::1", listener.getsockname()[1])

        def serve() -> None:
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (
            run(upstream, listen=Address("::1", 0)) as (proxy, watcher),
            socket.create_connection(("::1", proxy.address.port), timeout=5) as client,
        ):
            assert proxy.address.host == "::1"
            assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]
            entry = watcher.log.next(lambda entry: True)
            assert entry is not None
            assert entry.destination_address == str(upstream)
        thread.join(TIMEOUT)
    with line_server(Address("127.0.0.1", 0), lambda line: line) as echo:
        name = Address("localhost", echo.port)
        with run(name) as (proxy, _), connect(CLIENT, proxy.address) as client:
            assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]


def test_several_workers(echo: Address) -> None:
    with run(echo, concurrency=2) as (proxy, _):
        clients = [connect(CLIENT, proxy.address) for _ in range(16)]
        for client in clients:
            assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]
            client.close()


def test_the_death_of_envoy_is_told(echo: Address) -> None:
    with run(echo) as (proxy, _):
        proxy.wait(timeout=0.1)
        os.kill(proxy.pid, signal.SIGKILL)
        with pytest.raises(EnvoyDied, match=r"Envoy died \(killed by SIGKILL\)"):
            proxy.wait()


def test_the_log_can_go_to_another_reader(echo: Address, tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    seen: list[LogEntry] = []
    with AccessLogServer(path) as server, run(echo, access_log=path) as (proxy, watcher):
        with connect(CLIENT, proxy.address) as client:
            dialogue(client, b"HALT\r\n")
            deadline = time.monotonic() + TIMEOUT
            while not seen and time.monotonic() < deadline:
                seen += server.read(timeout=1)
        assert [dict(entry.generic_l7.fields)["cmd"] for entry in seen] == ["HALT"]
        assert watcher.log.entries == []
        assert "access-log" not in watcher.kinds()
    with run(echo, access_log=path) as (proxy, watcher):
        assert "nobody reads the access log" in watcher.event("access-log").message
        with connect(CLIENT, proxy.address) as client:
            assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]


def test_a_signal_that_does_not_wake_the_main_thread_ends_the_wait(echo: Address) -> None:
    """It may come just before the wait, or to another thread, as here."""
    with run(echo) as (proxy, _), stop_on_signals():
        sender = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM])
        sender.start()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            with pytest.raises(Stopped):
                proxy.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            sender.join()


def test_a_policy_that_is_empty_for_a_moment_opens_nothing(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    write_policy(policy, echo.port, "{cmd: HALT}")
    text = policy.read_text()
    with (
        run(echo, policies=(policy,), endpoints=endpoints) as (proxy, watcher),
        connect(LUKE, proxy.address) as luke,
    ):
        for number, path in enumerate((policy, endpoints), 1):
            content = path.read_text()
            path.write_text("")
            bad = watcher.event("bad-edit", number)
            assert f"{path}: holds no document" in bad.message
            assert dialogue(luke, b"READ x\r\n", b"HALT\r\n") == [b"ERROR\r\n", b"HALT\r\n"]
            path.write_text(content)
            watcher.event("rules", number + 1)
        policy.write_text(text.replace("HALT", "RESET"))
        watcher.event("rules", 4)
        assert dialogue(luke, b"HALT\r\n", b"RESET\r\n") == [b"ERROR\r\n", b"RESET\r\n"]


def test_rules_about_somebody_else_are_told_to_allow_everything(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    write_policy(folder / "policy.yaml", echo.port, "{cmd: HALT}")
    with run(echo, policies=(folder,)) as (_, watcher):
        assert watcher.event("rules").message == (
            "rules in force (version 1), none about the ingress of the upstream 127.0.0.1 "
            "(labels: none): everything is allowed"
        )
    with run(echo, policies=(folder,), endpoints=endpoints) as (_, watcher):
        assert watcher.event("rules").message == "rules in force (version 1)"


def address_of(event: dict[str, Any]) -> Address:
    return Address.parse(event["listen"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_everything_it_started(
    command: Callable[..., Command], echo: Address, number: int, short_path: Path
) -> None:
    running = command(
        *("run", "r2d2", "--listen", FREE, "--upstream", echo, "--json"),
        env={"TMPDIR": str(short_path)},
    )
    ready = running.event("ready")
    with connect(CLIENT, address_of(ready)) as client:
        assert dialogue(client, b"HALT\r\n") == [b"HALT\r\n"]
        assert running.decision()["fields"]["cmd"] == "HALT"
        assert running.end(number) == 0
    assert gone(ready["pid"])
    assert running.stderr() == ""
    assert list(short_path.iterdir()) == []
    running.event("stopped")


def test_the_command_killed_takes_envoy_along(
    command: Callable[..., Command], echo: Address, short_path: Path
) -> None:
    running = command(
        *("run", "r2d2", "--listen", FREE, "--upstream", echo, "--json"),
        env={"TMPDIR": str(short_path)},
    )
    ready = running.event("ready")
    running.end(signal.SIGKILL)
    assert gone(ready["pid"])
    (left,) = short_path.iterdir()
    # The next start tidies up behind it.
    again = command(
        *("run", "r2d2", "--listen", FREE, "--upstream", echo, "--json"),
        env={"TMPDIR": str(short_path)},
    )
    again.event("ready")
    assert not left.exists()
    assert again.end() == 0
    assert list(short_path.iterdir()) == []


def test_the_command_says_that_envoy_died(command: Callable[..., Command], echo: Address) -> None:
    running = command("run", "r2d2", "--listen", FREE, "--upstream", echo, "--json")
    os.kill(running.event("ready")["pid"], signal.SIGKILL)
    assert running.process.wait(timeout=30) == 4
    assert "proxylib: error: Envoy died (killed by SIGKILL)" in running.stderr()
    stopped = running.event("stopped")
    assert stopped["exit_status"] == 4
    assert stopped["message"].startswith("Envoy died (killed by SIGKILL)")


def test_the_command_for_people(command: Callable[..., Command], echo: Address) -> None:
    running = command("run", "r2d2", "--listen", FREE, "--upstream", echo)
    assert running.process.stderr is not None
    seen: list[str] = []
    for line in running.process.stderr:
        seen.append(line)
        if line == "proxylib: ready\n":
            break
    assert any(f"in front of {echo}" in line for line in seen)
    assert any("rules in force (version 1), without a policy" in line for line in seen)
    address = next(line for line in seen if "parser r2d2 at " in line).split(" at ")[1]
    with connect(CLIENT, Address.parse(address.split(",")[0])) as client:
        dialogue(client, b"READ x\r\n")
        decision = running.lines.get(timeout=TIMEOUT)
    assert decision is not None
    assert "REQUEST" in decision
    assert "cmd=READ file=x" in decision
    assert "\x1b" not in decision
    assert running.end() == 0


def test_the_command_with_a_parser_file_that_panics(
    command: Callable[..., Command], echo: Address
) -> None:
    running = command("run", "demos/fragile.py", "--listen", FREE, "--upstream", echo, "--json")
    address = address_of(running.event("ready"))
    with connect(CLIENT, address) as calm, connect(CLIENT, address) as doomed:
        assert dialogue(calm, b"one\n") == [b"one\n"]
        assert closed(doomed, b"BOOM\n")
        panic = running.until(lambda item: item.get("verdict") == "denied")
        assert panic["fields"]["status"].startswith("Panic: RuntimeError: I did not expect that")
        assert dialogue(calm, b"two\n") == [b"two\n"]
    assert running.end() == 0


def test_the_command_with_an_isolated_parser(
    command: Callable[..., Command], echo: Address
) -> None:
    options = ("--isolation", "process", "--on-error", "pass-through", "--json")
    running = command("run", "demos/fragile.py", "--listen", FREE, "--upstream", echo, *options)
    with connect(CLIENT, address_of(running.event("ready"))) as client:
        assert dialogue(client, b"one\n") == [b"one\n"]
        assert dialogue(client, b"BOOM\n") == [b"BOOM\n"]
        told = running.until(lambda item: "status" in item.get("fields", {}))
        said = "Passed unparsed from here on: Panic: RuntimeError: I did not expect that"
        assert told["fields"]["status"].startswith(said)
    assert running.end() == 0


def test_connections_of_a_starting_proxy_find_their_rules(
    echo: Address, tmp_path: Path, endpoints: Path
) -> None:
    """From the first accepted connection on nobody gets through whom the policy refuses."""
    policy = tmp_path / "policy.yaml"
    write_policy(policy, echo.port, "{cmd: HALT}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = Address("127.0.0.1", free.getsockname()[1])
    leaked: list[bytes] = []
    done = threading.Event()

    def intrude() -> None:
        while not done.is_set():
            try:
                with connect(VADER, listen) as vader:
                    vader.sendall(b"HALT\r\n")
                    leaked.append(vader.recv(100))
            except OSError:
                pass

    intruder = threading.Thread(target=intrude)
    intruder.start()
    try:
        with (
            run(echo, listen=listen, policies=(policy,), endpoints=endpoints) as (proxy, _),
            connect(LUKE, proxy.address) as luke,
        ):
            assert dialogue(luke, b"HALT\r\n") == [b"HALT\r\n"]
    finally:
        done.set()
        intruder.join()
    assert set(leaked) <= {b""}


def test_a_stuck_reader_of_the_command_does_not_stop_traffic(
    command: Callable[..., Command], echo: Address
) -> None:
    running = command(
        *("run", "r2d2", "--listen", FREE, "--upstream", echo),
        *("--json", "--envoy-log-level", "trace"),
        read=False,
    )
    stdout = running.process.stdout
    assert stdout is not None
    address = None
    while address is None:
        event = json.loads(stdout.readline())
        if event.get("event") == "ready":
            address = address_of(event)
    # From here on nobody reads: Envoy's own trace alone fills every pipe.
    with connect(CLIENT, address) as client:
        for _ in range(2000):
            assert dialogue(client, b"READ " + b"x" * 100 + b"\r\n")[0].startswith(b"READ")
    stdout.close()
    assert running.process.wait(timeout=30) == 0


def test_the_command_ends_when_its_reader_has_gone(
    command: Callable[..., Command], echo: Address
) -> None:
    running = command("run", "r2d2", "--listen", FREE, "--upstream", echo, "--json", read=False)
    stdout = running.process.stdout
    assert stdout is not None
    event: dict[str, Any] = {}
    while event.get("event") != "ready":
        event = json.loads(stdout.readline())
    stdout.close()
    with connect(CLIENT, address_of(event)) as client:
        dialogue(client, b"HALT\r\n")
        assert running.process.wait(timeout=30) == 0
    assert running.stderr() == ""
    assert gone(event["pid"])
