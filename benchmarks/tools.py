"""What the measurements share: the C tools, servers, Envoys and a control server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.envoy import find_envoy
from proxylib.native import library_path
from xds.control import ControlServer

HERE = Path(__file__).parent
SERVER = "127.0.0.2"
CLIENT = "127.0.0.1"
PORT = 11211
"""The port that policies name; servers listen on free ones."""

ENDPOINTS = f"""
endpoints:
  - address: {SERVER}
    labels: {{app: server}}
"""

START_TIMEOUT = 20.0


def compile_tool(name: str, folder: Path) -> Path:
    """The C program `name`, compiled into `folder`."""
    target = folder / name
    headers = library_path().parent / "native"
    source = HERE / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-I", headers, "-o", target, source, "-ldl"], check=True)
    return target


def policy(parser: str, rules: list[dict[str, str]]) -> str:
    """A CiliumNetworkPolicy (as JSON, which is YAML) for the server of a measurement."""
    port = {"ports": [{"port": str(PORT), "protocol": "TCP"}]}
    if rules:
        port["rules"] = {"l7proto": parser, "l7": rules}  # type: ignore[assignment]
    return json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "bench"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"toPorts": [port]}],
            },
        }
    )


@contextmanager
def control_server(folder: Path, parser: str, rules: list[dict[str, str]]) -> Iterator[Path]:
    """A control server with one policy; gives its socket."""
    name = parser.replace(".", "-")
    document, endpoints = folder / f"{name}.yaml", folder / "endpoints.yaml"
    document.write_text(policy(parser, rules))
    endpoints.write_text(ENDPOINTS)
    path = folder / f"{name}.xds"
    server = ControlServer(path, [document], endpoints)
    server.start()
    try:
        yield path
    finally:
        server.stop()


@contextmanager
def process(*command: str | Path, stdin: bytes = b"", log: Path, **env: str) -> Iterator[int]:
    """A program that runs as long as the context; gives its pid."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
    assert running.stdin is not None
    try:
        running.stdin.write(stdin)
        running.stdin.close()
        yield running.pid
        if running.poll() is not None:
            raise RuntimeError(f"{command[0]} ended early:\n{log.read_text()[-2000:]}")
    finally:
        running.terminate()
        running.wait()


def wait_port(address: str, port: int) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def free_port(address: str) -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Traffic:
    """What a load client sends, and how much it gets back.

    round: `depth` requests, as bytes; reply_bytes: of one reply. greeting: what begins a
    connection, and how many bytes answer it.
    """

    round: bytes
    depth: int
    reply_bytes: int
    greeting: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One turn of a load client: the proxy's CPU per request and latencies, microseconds."""

    cpu_us: float
    p50_us: float
    p99_us: float
    per_second: float


def run_load(
    tool: Path, traffic: Traffic, connections: int, requests: int, port: int, pid: int
) -> Sample:
    """Send `requests` through CLIENT:port; pid: whose CPU time is taken."""
    numbers = [connections, traffic.depth, requests, traffic.reply_bytes]
    for said, heard in traffic.greeting:
        numbers += [len(said), heard]
    before = cpu_ns(pid)
    done = subprocess.run(
        [str(tool), "client", CLIENT, str(port), *map(str, numbers)],
        input=b"".join(said for said, _ in traffic.greeting) + traffic.round,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"load at port {port}: {done.stderr.decode()}")
    result = json.loads(done.stdout)
    return Sample(
        (cpu_ns(pid) - before) / result["requests"] / 1e3,
        result["p50_us"],
        result["p99_us"],
        result["requests"] / result["seconds"],
    )


@contextmanager
def responder(
    tool: Path, folder: Path, reply: bytes, end: str = "\r\n", *, each: bool = False
) -> Iterator[int]:
    """The C upstream; each: it writes every reply by itself. Gives its port."""
    port = free_port(SERVER)
    command = [tool, "server", SERVER, str(port), end, *(["each"] if each else [])]
    with process(*command, stdin=reply, log=folder / f"responder-{port}.log"):
        wait_port(SERVER, port)
        yield port


@contextmanager
def memcached(folder: Path) -> Iterator[int]:
    """A real memcached on SERVER; gives its port."""
    port = free_port(SERVER)
    command = ["memcached", "-u", "nobody", "-l", SERVER, "-p", str(port), "-U", "0", "-I", "4m"]
    with process(*command, log=folder / "memcached.log"):
        wait_port(SERVER, port)
        yield port


@contextmanager
def envoy(
    folder: Path, name: str, upstream: int, filter_config: dict[str, Any] | None
) -> Iterator[tuple[int, int]]:
    """An Envoy in front of SERVER:upstream, one worker; gives its pid and port."""
    port = free_port(CLIENT)
    config = folder / f"{name}.json"
    config.write_text(json.dumps(bootstrap(port, upstream, filter_config)))
    with process(
        *(find_envoy(), "-c", config, "--concurrency", "1", "-l", "warning"),
        "--use-dynamic-base-id",
        log=folder / f"{name}.log",
        ENVOY_DYNAMIC_MODULES_SEARCH_PATH=str(library_path().parent),
    ) as pid:
        wait_port(CLIENT, port)
        yield pid, port


def bootstrap(port: int, upstream: int, filter_config: dict[str, Any] | None) -> dict[str, Any]:
    """Envoy's configuration: a listener, perhaps our filter, tcp_proxy, one cluster."""
    kind = "type.googleapis.com/envoy.extensions.filters.network"
    filters: list[dict[str, Any]] = []
    if filter_config is not None:
        filters.append(
            {
                "name": "envoy.filters.network.dynamic_modules",
                "typed_config": {
                    "@type": f"{kind}.dynamic_modules.v3.DynamicModuleNetworkFilter",
                    "dynamic_module_config": {
                        "name": "proxylib",
                        "do_not_close": True,
                        "load_globally": True,
                    },
                    "filter_name": filter_config["parser"],
                    "filter_config": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": json.dumps(
                            {"destination": f"{SERVER}:{PORT}", "ingress": True, **filter_config}
                        ),
                    },
                },
            }
        )
    filters.append(
        {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": f"{kind}.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "bench",
                "cluster": "server",
            },
        }
    )
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "bench",
                    "address": _address(CLIENT, port),
                    "filter_chains": [{"filters": filters}],
                }
            ],
            "clusters": [
                {
                    "name": "server",
                    "connect_timeout": "2s",
                    "type": "STATIC",
                    "circuit_breakers": {"thresholds": [{"max_connections": 100000}]},
                    "load_assignment": {
                        "cluster_name": "server",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {"endpoint": {"address": _address(SERVER, upstream)}}
                                ]
                            }
                        ],
                    },
                }
            ],
        }
    }


def _address(ip: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, and of those that it has started, nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        total += int((task / "schedstat").read_text().split()[0])
        total += sum(cpu_ns(int(child)) for child in (task / "children").read_text().split())
    return total


def rss_kib(pid: int) -> int:
    """Resident memory of a process, KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} is gone")


def need(program: str) -> None:
    """Raises SystemExit with what to do if `program` is not installed."""
    if shutil.which(program) is None:
        raise SystemExit(f"{program} is not installed: apt-get install {program}")
