"""A real Envoy with a listener for each parser, in front of one server that echoes lines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.envoy import find_envoy
from proxylib.native import library_path
from tests.native.services import LogSocket, PolicyServer, network_policy, wait_for

ENDPOINT = "10.9.9.9"
"""What the policy and the log call the server."""

PATIENCE = 30.0


class Echo:
    """Echoes what it is sent, and remembers all of it."""

    def __init__(self) -> None:
        self.received = bytearray()
        seen = self.received

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while data := self.request.recv(65536):
                        seen.extend(data)
                        self.request.sendall(data)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 100

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Running:
    """The Envoy of a test."""

    process: subprocess.Popen[bytes]
    ports: Mapping[str, int]
    log: LogSocket
    echo: Echo
    folder: Path

    def connect(self, listener: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[listener]), timeout=PATIENCE)

    def statuses(self, client: str, since: int = 0) -> list[str]:
        """What the log says about connections from the client's address ``ip:port``.

        since: how many entries the log had before; addresses come again.
        """
        return [
            entry.generic_l7.fields["status"]
            for entry in self.log.entries[since:]
            if entry.source_address == client and "status" in entry.generic_l7.fields
        ]

    def wait_status(self, client: str, what: str, since: int = 0) -> str:
        found: list[str] = wait_for(lambda: self.statuses(client, since), what)
        return found[0]

    @property
    def stderr(self) -> str:
        return (self.folder / "envoy.log").read_text(errors="replace")


def address(connection: socket.socket) -> str:
    ip, port = connection.getsockname()
    return f"{ip}:{port}"


def receive(connection: socket.socket, wanted: bytes = b"") -> bytes:
    """All that comes until `wanted` has come, or the connection ends.

    If neither happens in time, what has come and ``<open>``.
    """
    got = b""
    with contextlib.suppress(ConnectionResetError):
        try:
            while (not wanted or wanted not in got) and (data := connection.recv(65536)):
                got += data
        except TimeoutError:
            return got + b"<open>"
    return got


@contextlib.contextmanager
def envoy(folder: Path, configs: Mapping[str, dict[str, Any]]) -> Iterator[Running]:
    """An Envoy with two workers; `configs`: a filter's configuration for each listener."""
    echo, log = Echo(), LogSocket(folder / "log.sock")
    policies = PolicyServer(folder / "xds.sock")
    policies.publish([network_policy(ENDPOINT, "", None)])
    common = {
        "xds_path": str(policies.path),
        "access_log_path": str(log.path),
        "node_id": "faults",
        "destination": f"{ENDPOINT}:80",
    }
    document = folder / "envoy.json"
    admin = folder / "admin.json"
    listeners = [_listener(name, {**common, **config}) for name, config in configs.items()]
    document.write_text(json.dumps(_bootstrap(listeners, echo.port)))
    with (folder / "envoy.log").open("wb") as stderr:
        options = ["--concurrency", "2", "-l", "warning", "--use-dynamic-base-id"]
        process = subprocess.Popen(
            [find_envoy(), "-c", document, *options, "--admin-address-path", admin],
            stderr=stderr,
            stdout=stderr,
            env={**os.environ, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(library_path().parent)},
        )
    try:
        running = Running(process, {}, log, echo, folder)
        # The file is there before its text is.
        wait_for(
            lambda: process.poll() or _get(f"http://{_text(admin)}/ready").startswith("LIVE"),
            "Envoy",
            PATIENCE,
        )
        assert process.poll() is None, running.stderr
        url = f"http://{_text(admin)}"
        statuses = json.loads(_get(f"{url}/listeners?format=json"))["listener_statuses"]
        running.ports = {
            each["name"]: each["local_address"]["socket_address"]["port_value"] for each in statuses
        }
        yield running
        assert process.poll() is None, running.stderr
    finally:
        process.terminate()
        process.wait(PATIENCE)
        policies.close()
        log.close()
        echo.close()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return str(response.read().decode())
    except (OSError, ValueError):
        return ""


_KIND = "type.googleapis.com/envoy.extensions.filters.network"


def _listener(name: str, config: dict[str, Any]) -> dict[str, Any]:
    module = {
        "@type": f"{_KIND}.dynamic_modules.v3.DynamicModuleNetworkFilter",
        "dynamic_module_config": {
            "name": "proxylib",
            "do_not_close": True,
            "load_globally": True,
        },
        "filter_name": "proxylib",
        "filter_config": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": json.dumps(config),
        },
    }
    proxy = {
        "@type": f"{_KIND}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name.replace(".", "_"),
        "cluster": "echo",
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [
                    {"name": "envoy.filters.network.dynamic_modules", "typed_config": module},
                    {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy},
                ]
            }
        ],
    }


def _bootstrap(listeners: list[dict[str, Any]], port: int) -> dict[str, Any]:
    server = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
    cluster = {
        "name": "echo",
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "echo",
            "endpoints": [{"lb_endpoints": [{"endpoint": server}]}],
        },
    }
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    return {"admin": admin, "static_resources": {"listeners": listeners, "clusters": [cluster]}}


@dataclass
class Traffic:
    """Good requests, one after the other, from a thread of their own until it is stopped."""

    running: Running
    listener: str
    answered: int = 0
    lost: list[str] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        # A new connection every hundred requests, so that both are seen to live.
        while not self._stop.is_set() and not self.lost:
            try:
                with self.running.connect(self.listener) as connection:
                    for n in range(100):
                        line = b"READ %d\r\n" % n
                        connection.sendall(line)
                        if receive(connection, line) != line:
                            self.lost.append(f"request {self.answered}")
                            return
                        self.answered += 1
                        if self._stop.is_set():
                            break
            except OSError as error:
                self.lost.append(f"request {self.answered}: {error!r}")
