"""A stock Envoy that gets its listeners from us over ADS, and judges by our policies."""

from __future__ import annotations

import http.client
import http.server
import json
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from demos.stage import line_server
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy
from tests.integration.waiting import until
from xds.ads import bootstrap
from xds.ads.clusters import Upstream
from xds.ads.ports import ProxyPorts, is_free
from xds.ads.redirects import Redirects
from xds.ads.resources import Direction, NodeConfig, Redirect, build
from xds.ads.secrets import read_secret
from xds.ads.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from xds.control import ControlServer
from xds.subscription import StreamStatus
from xds.world import Resource, resource

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
PATIENCE = 20.0
"""Seconds in which a busy machine's Envoy has everything in force."""

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: droids}}
spec:
  endpointSelector: {{matchLabels: {{app: droid}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules: {{l7proto: r2d2, l7: [{{cmd: {cmd}}}]}}
"""
ENDPOINTS_FILE = "endpoints: [{address: 127.0.0.1, labels: {app: droid}}]\n"

Built = dict[str, dict[str, Resource]]

both = pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with TemporaryDirectory(prefix="ads") as path:
        yield Path(path)


@pytest.fixture
def droid() -> Iterator[Address]:
    with line_server(Address(HOST, 0), lambda line: line) as address:
        yield address


@contextmanager
def envoy(folder: Path, incremental: bool) -> Iterator[EnvoyProcess]:
    """An Envoy that knows nothing but where to ask."""
    config = bootstrap.NodeBootstrap(
        "node", folder / "xds.sock", folder / "admin.sock", incremental
    )
    document = folder / "envoy.json"
    document.write_text(bootstrap.to_json(bootstrap.build(config)))
    with EnvoyProcess(find_envoy(), document, config.admin_path) as process:
        process.wait_ready()
        yield process


@dataclass
class Node:
    """A control server in this process, and an Envoy that asks it."""

    folder: Path
    droid: Address
    port: int
    control: ControlServer
    envoy: EnvoyProcess

    @property
    def config(self) -> NodeConfig:
        return node_config(self.folder)

    def redirect(self, parser: str = "r2d2", **changes: Any) -> Redirect:
        return replace(redirect(self.droid, self.port, parser), **changes)

    def build(self, *redirects: Redirect, **changes: Any) -> Built:
        servers = Upstream("droids", ((HOST, self.droid.port),))
        return build(replace(self.config, **changes), redirects, [servers])

    def publish(self, built: Built) -> None:
        self.control.server.publish(built)

    def settled(self) -> bool:
        discovery = self.control.server
        return discovery.wait(discovery.revision, PATIENCE, types=[CLUSTER, LISTENER])

    def status(self, url: str) -> StreamStatus:
        (found,) = (s for s in self.control.server.streams() if s.type_url == url)
        return found

    def allow(self, cmd: str) -> None:
        set_policy(self.folder, self.droid, cmd)
        self.control.reload()

    def stat(self, name: str) -> int:
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.envoy.ask("/stats")[1], re.M)
        assert found is not None, name
        return int(found[1])


def node_config(folder: Path) -> NodeConfig:
    return NodeConfig(
        folder / "xds.sock", folder / "log.sock", "node", hosts=(HOST,), transparency=None
    )


def redirect(droid: Address, port: int, parser: str = "r2d2") -> Redirect:
    return Redirect(parser, Direction.INGRESS, port, upstream="droids", destination=str(droid))


def set_policy(folder: Path, droid: Address, cmd: str) -> None:
    text = folder / "policy.new"
    text.write_text(POLICY.format(port=droid.port, cmd=cmd))
    text.rename(folder / "policy.yaml")
    (folder / "endpoints.yaml").write_text(ENDPOINTS_FILE)


@contextmanager
def running(folder: Path, droid: Address, incremental: bool) -> Iterator[Node]:
    set_policy(folder, droid, "HALT")
    control = ControlServer(
        folder / "xds.sock", [folder / "policy.yaml"], folder / "endpoints.yaml"
    )
    port = free_port()
    servers = Upstream("droids", ((HOST, droid.port),))
    control.server.publish(build(node_config(folder), [redirect(droid, port)], [servers]))
    with control, envoy(folder, incremental) as process:
        yield Node(folder, droid, port, control, process)


@pytest.fixture(params=[False, True], ids=["sotw", "delta"])
def node(request: pytest.FixtureRequest, folder: Path, droid: Address) -> Iterator[Node]:
    with running(folder, droid, request.param) as found:
        assert found.settled(), found.control.server.streams()
        yield found


class Connection:
    """To the proxy; `ask` says what became of a request."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=10)
        self._file = self._socket.makefile("rb")

    def ask(self, line: bytes) -> bytes:
        self._socket.sendall(line + b"\r\n")
        return self._file.readline().removesuffix(b"\r\n")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def test_a_listener_of_ours_judges(node: Node) -> None:
    with Connection(node.port) as client:
        assert client.ask(b"HALT") == b"HALT"
        assert client.ask(b"RESET") == b"ERROR"
    statuses = node.control.server.streams()
    assert {s.type_url for s in statuses} >= {CLUSTER, LISTENER, ENDPOINTS}
    assert all(s.pending_since is None and not s.reason for s in statuses)


def test_a_policy_change_touches_no_listener(node: Node) -> None:
    before = [node.status(url) for url in (CLUSTER, LISTENER, ENDPOINTS)]
    with Connection(node.port) as client:
        assert client.ask(b"RESET") == b"ERROR"
        node.allow("RESET")
        assert node.settled()
        assert client.ask(b"RESET") == b"RESET", "on the connection that was open"
        assert client.ask(b"HALT") == b"ERROR"
    after = [node.status(url) for url in (CLUSTER, LISTENER, ENDPOINTS)]
    assert [replace(s, revision=0) for s in after] == [replace(s, revision=0) for s in before]
    for name in ("listener_modified", "listener_in_place_updated", "total_listeners_draining"):
        assert node.stat(f"listener_manager.{name}") == 0


def test_redirects_come_and_go_beside_each_other(node: Node) -> None:
    other = free_port()
    with Connection(node.port) as client:
        assert client.ask(b"HALT") == b"HALT"
        both_passes = node.redirect(direction=Direction.BOTH, port=other)
        node.publish(node.build(node.redirect(), both_passes))
        assert node.settled()
        with Connection(other) as second:
            assert second.ask(b"HALT") == b"HALT"
            assert second.ask(b"RESET") == b"ERROR"
        node.publish(node.build(node.redirect()))
        assert node.settled()
        until(lambda: refuses(other))
        assert client.ask(b"HALT") == b"HALT", "the first one's connection is the same"
    assert node.stat("listener_manager.listener_removed") == 1
    assert node.stat("listener_manager.listener_modified") == 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return True
    return False


def test_a_refused_listener_leaves_the_last_good_one(node: Node) -> None:
    node.publish(node.build(node.redirect(parser="r2d3", port=free_port()), node.redirect()))
    until(lambda: bool(node.status(LISTENER).reason))
    status = node.status(LISTENER)
    assert status.node_id == "node"
    assert status.refused == ("r2d3/ingress/to=droids",)
    assert status.nacked_version > status.acked_version
    assert not node.control.server.wait(node.control.server.revision, 0.2)
    with Connection(node.port) as client:
        assert client.ask(b"HALT") == b"HALT"
    rejected = node.stat("listener_manager.lds.update_rejected")
    node.allow("RESET")  # something else changes
    until(lambda: verdict(node.port, b"RESET") == b"RESET")
    assert node.stat("listener_manager.lds.update_rejected") == rejected == 1, "not tried again"
    node.publish(node.build(node.redirect()))
    assert node.settled()
    assert node.status(LISTENER).reason == ""


def verdict(port: int, line: bytes) -> bytes:
    with Connection(port) as client:
        return client.ask(line)


def test_a_refused_cluster_holds_nothing_else_up(node: Node) -> None:
    built = node.build(node.redirect(), node.redirect(direction=Direction.BOTH, port=free_port()))
    built[CLUSTER]["bad"] = resource("bad", b"\x0a\x03bad\x10\x63")  # a type that is not there
    node.publish(built)
    until(lambda: bool(node.status(CLUSTER).reason))
    assert node.status(CLUSTER).refused in (("bad",), ())
    until(lambda: node.status(LISTENER).acked_version == node.status(LISTENER).sent_version > 1)
    with Connection(node.port) as client:
        assert client.ask(b"HALT") == b"HALT"


def test_an_updated_cluster_is_warm_at_once(node: Node) -> None:
    """Envoy waits for endpoints after each update of an EDS cluster; they come again."""
    with Connection(node.port) as client:
        node.publish(node.build(node.redirect(), max_connections=4321))
        assert node.settled()
        assert client.ask(b"HALT") == b"HALT"
    assert node.stat("cluster.to=droids.init_fetch_timeout") == 0, "and not only after 15 s"
    assert node.stat("cluster_manager.warming_clusters") == 0
    assert node.stat("cluster_manager.cluster_modified") == 1
    assert "max_connections::4321" in node.envoy.ask("/clusters")[1]
    assert verdict(node.port, b"HALT") == b"HALT"


def test_endpoints_change_alone(node: Node) -> None:
    listener = node.status(LISTENER)
    with line_server(Address(HOST, 0), lambda line: b"other " + line) as other:
        servers = Upstream("droids", ((HOST, other.port),))
        node.publish(build(node.config, [node.redirect()], [servers]))
        assert node.settled()
        until(lambda: verdict(node.port, b"HALT") == b"other HALT")
    assert replace(node.status(LISTENER), revision=listener.revision) == listener


def test_reconnecting_changes_nothing(node: Node) -> None:
    """The control server stops and starts: Envoy says what it has, and has it still."""
    with Connection(node.port) as client:
        assert client.ask(b"HALT") == b"HALT"
        updates = node.stat("listener_manager.lds.update_success")
        node.control.server.stop()
        assert client.ask(b"HALT") == b"HALT"
        assert verdict(node.port, b"RESET") == b"ERROR", "the last policy stays in force"
        node.control.server.start()
        assert node.settled()
        assert client.ask(b"HALT") == b"HALT"
    assert node.stat("listener_manager.lds.update_success") == updates, "nothing was sent"
    assert node.stat("listener_manager.listener_modified") == 0


def test_a_port_that_somebody_else_has_is_left_to_them(node: Node) -> None:
    """Envoy finds out; the redirect moves, and the ones beside it stay."""
    discovery = node.control.server
    with socket.create_server((HOST, 0)) as somebody:
        taken: int = somebody.getsockname()[1]
        # They came between our look and Envoy's.
        ports = ProxyPorts(first=taken, last=taken + 50, free=lambda n: n == taken or free_now(n))
        redirects = Redirects(node.config, ports, discovery.publish)
        servers = [Upstream("droids", ((HOST, node.droid.port),))]
        moving = node.redirect(direction=Direction.BOTH, port=0)
        name = moving.name
        assert redirects.put([node.redirect(), moving], servers)[name] == taken
        until(lambda: bool(node.status(LISTENER).reason))
        assert node.status(LISTENER).refused == (name,)
        moved = redirects.resolve(discovery.streams())
        assert set(moved) == {name}
        assert moved[name] > taken
        assert node.settled(), discovery.streams()
        assert verdict(moved[name], b"HALT") == b"HALT"
        assert verdict(node.port, b"HALT") == b"HALT"
    assert node.stat("listener_manager.listener_modified") == 0


def free_now(number: int) -> bool:
    return is_free(number, (HOST,))


def test_tls_is_terminated_and_certificates_are_renewed(node: Node, tmp_path: Path) -> None:
    """The parser judges what is inside TLS; a renewed certificate is no new listener."""
    secret = {name: certificate(tmp_path, name) for name in ("old", "new")}
    listener = node.redirect(port=free_port(), terminating="front")
    servers = [Upstream("droids", ((HOST, node.droid.port),))]
    listeners = []
    for name, (cert, key) in secret.items():
        front = read_secret("front", certificate=cert, private_key=key)
        node.publish(build(node.config, [listener], servers, [front]))
        assert node.settled()
        until(lambda port=listener.port: not refuses(port))
        context = ssl.create_default_context(cafile=cert)
        with (
            socket.create_connection((HOST, listener.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=name) as client,
        ):
            client.sendall(b"HALT\r\nRESET\r\n")
            answer = b""
            while answer.count(b"\n") < 2:
                answer += client.recv(100) or b"closed\n"
            assert sorted(answer.split()) == [b"ERROR", b"HALT"]
        listeners.append(replace(node.status(LISTENER), revision=0))
    assert listeners[0] == listeners[1]


def test_tls_goes_on_to_a_server_that_has_the_name(node: Node, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "droid.example")
    other, _ = certificate(tmp_path, "other.example")
    front = read_secret("front", certificate=cert, private_key=key)
    listener = node.redirect(port=free_port(), terminating="front", originating="back")
    with tls_server(cert, key) as address:
        servers = [Upstream("droids", ((HOST, address.port),))]
        for trusted, expected in ((cert, b"HALT\r\n"), (other, b"")):
            back = read_secret("back", trusted_ca=trusted)
            node.publish(build(node.config, [listener], servers, [front, back]))
            assert node.settled()
            until(lambda: not refuses(listener.port))
            assert tls_ask(listener.port, cert, "droid.example") == expected


def tls_ask(port: int, cert: Path, name: str) -> bytes:
    """The answer to one request; empty if the connection is closed, at whatever point."""
    context = ssl.create_default_context(cafile=cert)
    with socket.create_connection((HOST, port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name) as client:
                client.sendall(b"HALT\r\n")
                return client.recv(100)
        except (ConnectionError, ssl.SSLError):
            return b""


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for `name` that is its own authority, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ],
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@contextmanager
def tls_server(cert: Path, key: Path) -> Iterator[Address]:
    """Answers what it is told, to those that speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                with context.wrap_socket(self.request, server_side=True) as client:
                    while data := client.recv(1000):
                        client.sendall(data)
            except (OSError, ssl.SSLError):
                pass  # a client that does not trust us

    with socketserver.ThreadingTCPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Address(HOST, server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


HTTP_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: droid}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules: {{http: [{{method: GET, path: "/{path}"}}]}}
"""


def test_http_goes_by_routes_of_ours(node: Node) -> None:
    """A connection manager with the parser as its HTTP filter; routes come by RDS."""

    def answer(path: str) -> int:
        connection = http.client.HTTPConnection(HOST, listener.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    with web_server() as web:
        listener = Redirect(
            "http",
            Direction.INGRESS,
            free_port(),
            http=True,
            upstream="web",
            destination=str(web),
        )
        text = HTTP_POLICY.format(port=web.port, path="plans")
        node.control.set_documents({"web": text}, ENDPOINTS_FILE)
        servers = [
            Upstream("web", ((HOST, web.port),)),
            Upstream("droids", ((HOST, node.droid.port),)),
        ]
        node.publish(build(node.config, [listener, node.redirect()], servers))
        assert node.settled(), node.control.server.streams()
        until(lambda: not refuses(listener.port))
        assert node.status(ROUTES).acked_version == node.status(ROUTES).sent_version > 0
        assert [answer(path) for path in ("/plans", "/secret")] == [200, 403]
        before = replace(node.status(LISTENER), revision=0)
        text = HTTP_POLICY.format(port=web.port, path="secret")
        node.control.set_documents({"web": text}, ENDPOINTS_FILE)
        assert node.settled()
        assert [answer(path) for path in ("/plans", "/secret")] == [403, 200]
        assert replace(node.status(LISTENER), revision=0) == before


@contextmanager
def web_server(tls: tuple[Path, Path] | None = None) -> Iterator[Address]:
    """Says 200 to every GET. tls: its certificate and key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Address(HOST, server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


class Traffic:
    """Requests all the time: on one connection, and each on a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.answers: list[bytes] = []
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(keep,)) for keep in (True, False)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 50) -> None:
        """Wait for more answers."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted or bool(self.errors), PATIENCE)

    def _run(self, keep: bool) -> None:
        try:
            while not self._stop.is_set():
                with Connection(self._port) as client:
                    while not self._stop.is_set():
                        self.answers.append(client.ask(b"HALT"))
                        self._stop.wait(0.002)
                        if not keep:
                            break
        except BaseException as error:
            self.errors.append(error)


@contextmanager
def server_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ads_server", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@both
def test_no_request_is_lost_when_the_control_server_is_killed(
    folder: Path, droid: Address, incremental: bool
) -> None:
    port = free_port()
    set_policy(folder, Address(HOST, port), "HALT")
    redirects = {"parser": "r2d2", "direction": "ingress", "port": port}
    wanted = {"redirects": [redirects], "servers": [[HOST, droid.port]]}
    (folder / "redirects.json").write_text(json.dumps(wanted))
    with server_process(folder) as first, envoy(folder, incremental) as process:
        until(lambda: not refuses(port), PATIENCE)
        until(lambda: verdict(port, b"HALT") == b"HALT", PATIENCE)
        with Traffic(port) as traffic:
            traffic.more()
            first.send_signal(signal.SIGKILL)
            first.wait()
            traffic.more()
            assert verdict(port, b"RESET") == b"ERROR", "judged by the last policy"
            with server_process(folder):
                set_policy(folder, Address(HOST, port), "RESET")
                until(lambda: verdict(port, b"RESET") == b"RESET", PATIENCE)
                set_policy(folder, Address(HOST, port), "HALT")
                until(lambda: verdict(port, b"HALT") == b"HALT", PATIENCE)
                judged_anew = len(traffic.answers)
                traffic.more()
        assert traffic.errors == []
        assert set(traffic.answers[:50]) == {b"HALT"}
        assert set(traffic.answers[judged_anew + 2 :]) == {b"HALT"}
        assert set(traffic.answers) <= {b"HALT", b"ERROR"}, "each was answered, by somebody"
        _, stats = process.ask("/stats?filter=listener_manager")
        assert "listener_manager.listener_modified: 0" in stats
        assert "listener_manager.listener_removed: 0" in stats
