"""The lab: what is made in it, what works in it, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from demos.namespaces import NAMES, PREFIX, Endpoint, Lab
from demos.servers.maven import Missing
from node.errors import SetupError
from tests.conftest import MakeLab

ROOT = Path(__file__).parents[2]

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000), family=int(sys.argv[2]))
print("ready", flush=True)
while True:
    connection, address = server.accept()
    connection.sendall(address[0].encode())
    connection.close()
"""


def says_who(server: Endpoint, address: str, family: int) -> None:
    """A server in the namespace that tells its clients their address."""
    process = server.popen(
        sys.executable, "-c", ECHO, address, str(family), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == "ready\n"


def ask(client: Endpoint, address: str) -> str:
    with client.entered(), socket.create_connection((address, 7000), timeout=5) as connection:
        return connection.recv(100).decode()


def runs(pid: int) -> bool:
    """Whether a process is there, and more than an entry that its parent has not read yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def left(pid: int) -> list[str]:
    places = (NAMES, Path(tempfile.gettempdir()))
    return [path.name for place in places for path in place.glob(f"{PREFIX}-{pid}-*")]


def test_endpoints_reach_each_other_and_the_world(make_lab: MakeLab) -> None:
    before = time.monotonic()
    lab = make_lab("client", "server", outside=True)
    took = time.monotonic() - before
    server = lab["server"]
    for version, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
        address = getattr(server, version)
        says_who(server, address, family)
        for client in (lab["client"], lab.outside):
            assert ask(client, address) == getattr(client, version)
        with lab.node.entered():
            assert ask(lab.node, address) == getattr(lab.node, version)  # type: ignore[arg-type]
    assert took < 5, "duplicate address detection?"


def test_a_routed_veth(make_lab: MakeLab) -> None:
    lab = make_lab("one")
    one = lab["one"]
    links = lab.node.run("ip", "-br", "link", "show", "dev", one.interface).stdout
    assert one.gateway_mac in links
    assert one.mac in one.run("ip", "-br", "link", "show", "dev", "eth0").stdout
    assert "master" not in lab.node.run("ip", "link").stdout
    assert lab.node.ifindex(one.interface) > 1
    assert one.ifindex() > 1
    assert lab.node.sysctl("ipv4/ip_forward") == "1"
    assert one.sysctl("ipv4/ip_forward") == "0"


def test_the_machines_own_namespace_is_left_alone(make_lab: MakeLab) -> None:
    def seen() -> list[str]:
        commands = ("ip -br address", "ip route", "ip -6 route", "ip rule", "ip -6 rule")
        outputs = [
            subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
            for command in commands
        ]
        return [*outputs, Path("/proc/sys/net/ipv4/ip_forward").read_text()]

    before = seen()
    make_lab("one", "two", outside=True)
    assert seen() == before


def test_programs_and_sockets_live_where_they_were_made(make_lab: MakeLab) -> None:
    lab = make_lab("one")
    home = os.stat("/proc/self/ns/net").st_ino
    with lab["one"].entered():
        listening = socket.create_server((lab["one"].ipv4, 7001))
    with listening:
        assert os.stat("/proc/thread-self/ns/net").st_ino == home
        assert lab["one"].run("hostname", "-I").stdout.split() == [lab["one"].ipv4, lab["one"].ipv6]
        with lab.node.entered(), socket.create_connection((lab["one"].ipv4, 7001), timeout=5):
            pass
        assert lab["one"].http_code(f"http://{lab.node.ipv4}:9/") == "000"


def test_everything_is_ended_and_removed() -> None:
    with Lab("one") as lab:
        mine = lab["one"].popen("sleep", "100")
        # Its parent is gone at once.
        orphan = int(lab["one"].run("sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!").stdout)
        assert sorted(lab["one"].pids()) == sorted([mine.pid, orphan])
        mounted = lab.bpffs()
        assert mounted.is_mount()
    assert mine.returncode == -signal.SIGTERM
    assert not runs(orphan)
    assert left(os.getpid()) == []
    assert str(mounted) not in Path("/proc/mounts").read_text()


def test_what_a_killed_owner_left_is_removed_by_the_next(make_lab: MakeLab) -> None:
    program = """
from demos.namespaces import Lab
import time
with Lab("one") as lab:
    lab.bpffs()
    print(lab["one"].popen("sleep", "100").pid, flush=True)
    time.sleep(100)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout as output:
        sleeping = int(output.readline())
    make_lab()
    assert len(left(owner.pid)) == 3, "its owner lives"
    owner.kill()
    owner.wait()
    assert runs(sleeping)
    make_lab()
    assert left(owner.pid) == []
    assert f"{PREFIX}-{owner.pid}-" not in Path("/proc/mounts").read_text()
    assert not runs(sleeping)


def test_one_more_endpoint_and_none_twice(make_lab: MakeLab) -> None:
    lab = make_lab("one")
    two = lab.add("two")
    assert [endpoint.name for endpoint in lab] == ["one", "two"]
    says_who(two, two.ipv6, socket.AF_INET6)
    assert ask(lab["one"], two.ipv6) == lab["one"].ipv6
    with pytest.raises(SetupError, match="already"):
        lab.add("two")


def test_what_fails_half_way_leaves_nothing() -> None:
    with (
        pytest.raises(SetupError, match=r"Cannot create|File name|too long|Invalid"),
        Lab("one", "x" * 300),
    ):
        pass
    assert left(os.getpid()) == []


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Missing, match="need root"), Lab():
        pass
