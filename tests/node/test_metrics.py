"""The commands that read the log also serve what they count."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from node.address import Address
from node.cli import cli
from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry
from tests.integration.waiting import until
from tests.node.conftest import Command


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_run_counts_what_it_prints(command: Callable[..., Command], echo: Address) -> None:
    arguments = ("--listen", "127.0.0.1:0", "--upstream", echo, "--metrics", "127.0.0.1:0")
    running = command("run", "r2d2", *arguments, "--json")
    url = running.event("metrics")["url"]
    ready = Address.parse(running.event("ready")["listen"])
    with socket.create_connection((ready.host, ready.port), timeout=10) as client:
        client.sendall(b"READ plans\r\nHALT\r\n")
        assert client.recv(100)
        running.decision()
    counted = 'proxylib_requests_total{direction="ingress",operation="READ",parser="r2d2"'
    until(lambda: f'{counted},verdict="allowed"}} 1.0' in scrape(url))
    assert running.end() == 0


def test_accesslog_counts_what_it_prints(command: Callable[..., Command], tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    running = command("accesslog", path, "--json", "--metrics", "127.0.0.1:0")
    assert running.process.stderr is not None
    url = ""
    while not url:
        line = running.process.stderr.readline()
        assert line
        if "metrics at " in line:
            url = line.split()[-1]
    l7 = L7LogEntry(proto="memcache", fields={"command": "get"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(path))
        client.send(LogEntry(entry_type=EntryType.Denied, generic_l7=l7).SerializeToString())
        running.until(lambda item: item["verdict"] == "denied")
    labels = 'direction="egress",operation="get",parser="memcache",verdict="denied"'
    until(lambda: f"proxylib_requests_total{{{labels}}} 1.0" in scrape(url))
    assert running.end() == 0


def test_what_is_refused(echo: Address, tmp_path: Path) -> None:
    common = ["run", "r2d2", "--listen", "127.0.0.1:0", "--upstream", str(echo)]
    elsewhere = ["--metrics", "127.0.0.1:0", "--access-log", str(tmp_path / "x")]
    result = CliRunner().invoke(cli, [*common, *elsewhere])
    assert result.exit_code == 2
    assert "proxylib accesslog" in result.output
    result = CliRunner().invoke(cli, [*common, "--metrics", str(echo)])
    assert result.exit_code == 3
    assert "the port is in use" in result.output
    result = CliRunner().invoke(cli, ["accesslog", str(tmp_path / "y"), "--metrics", "nowhere"])
    assert result.exit_code == 2
    assert "write HOST:PORT" in result.output
