"""The real programs, as the loader puts them in place."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bpf import compiler, schema
from bpf.datapath import Datapath, Link
from bpf.errors import IpcacheFull
from bpf.netns import within
from bpf.policies import PolicyEntry
from bpf.programs import SIDECAR
from tests.bpf.nodes import ALLOW_ALL, SMALL, Namespace, Node

Make = Callable[[], Namespace]
UDP, SO_RCVBUFFORCE = 17, 33
OPEN, CLOSED = 8080, 8081
ONE_PORT = [PolicyEntry(0, True, UDP, OPEN, 24, 1, 1), *ALLOW_ALL[1:]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the programs that a test may change."""
    shutil.copytree(compiler.PROGRAMS, tmp_path / "programs")
    return tmp_path / "programs" / "endpoint.c"


@dataclass
class Sender(threading.Thread):
    """Sends numbered datagrams to two ports, as fast as they are taken, until it is stopped."""

    inside: Namespace
    address: str
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        within(self.inside.path, self._send)

    def _send(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not self.stopping.wait(0.0002):
                for port in (OPEN, CLOSED):
                    sock.sendto(self.sent.to_bytes(8, "big"), (self.address, port))
                self.sent += 1

    __hash__ = threading.Thread.__hash__


def bound(inside: Namespace, port: int) -> socket.socket:
    def bind() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        sock.bind(("0.0.0.0", port))
        sock.setblocking(False)
        return sock

    return within(inside.path, bind)


def received(sock: socket.socket) -> Iterator[int]:
    while True:
        try:
            yield int.from_bytes(sock.recv(8), "big")
        except BlockingIOError:
            return


def put_in_force(datapath: Datapath, client: Link, server: Link) -> None:
    """What an agent does when it starts."""
    with datapath.transaction():
        datapath.set_identities({client.ipv4: client.identity, server.ipv4: server.identity})
        datapath.attach(client)
        datapath.attach(server)
        datapath.set_policy(client.number, ALLOW_ALL)
        datapath.set_policy(server.number, ONE_PORT)


def test_take_over_has_no_gap(node: Node, source: Path, namespaces: Make) -> None:
    """Also by a release with other programs: nothing that is denied gets through meanwhile, and
    nothing is lost of what is not."""
    insides = namespaces(), namespaces()
    client, server = (node.endpoint(n, inside) for n, inside in enumerate(insides, 1))
    datapath = node.open(source=source)
    put_in_force(datapath, client, server)
    sockets = [bound(insides[1], port) for port in (OPEN, CLOSED)]
    sender = Sender(insides[0], server.ipv4)
    sender.start()
    try:
        for round_ in range(6):
            datapath.close()
            if round_ == 3:
                source.write_text(source.read_text() + "\n")
            datapath = node.open(source=source)
            assert bool(datapath.programs.compiled) == (round_ == 3)
            put_in_force(datapath, client, server)
    finally:
        sender.stopping.set()
        sender.join()
        datapath.close()
    through, denied = (list(received(sock)) for sock in sockets)
    for sock in sockets:
        sock.close()
    assert sender.sent > 100
    assert through == list(range(sender.sent))
    assert denied == []


def test_what_cannot_be_told_apart_is_closed(node: Node, namespaces: Make) -> None:
    insides = namespaces(), namespaces()
    client, server = (node.endpoint(n, inside) for n, inside in enumerate(insides, 1))
    real = compiler.PROGRAMS / "endpoint.c"
    datapath = node.open(source=real, sizes={**SMALL, "ipcache": 2})
    try:
        for number, link in enumerate((client, server), 1):
            datapath.attach(link)
            datapath.set_policy(number, ALLOW_ALL)
        assert node.reaches(server.ipv4)
        with pytest.raises(IpcacheFull):
            datapath.set_identities({"10.0.0.254": 1, "10.0.0.2": server.identity})
        with pytest.raises(IpcacheFull):
            datapath.set_identities({"10.0.0.254": None, "10.0.0.9": 9, "10.0.0.8": 8})
        assert not node.reaches(server.ipv4)
        reasons = {schema.REASON_TEXTS.get(one.reason) for one in datapath.counters()}
        assert "Invalid identity" in reasons
        datapath.set_identities({"10.0.0.9": None, "10.0.0.8": None})
        assert node.reaches(server.ipv4)
    finally:
        datapath.close()


def test_no_tail_calls(cache: Path, privileged: None) -> None:
    """A program array is emptied when its loader dies, and the call falls through: open."""
    call, tail_call = 0x85, 12
    for constants in ((), (SIDECAR,)):
        code = compiler.compile_source(compiler.PROGRAMS / "endpoint.c", cache, {}, constants)
        assert code.keys() == {"from_endpoint", "to_endpoint"}
        for function in code.values():
            raw = function.instructions
            words = [raw[n : n + 8] for n in range(0, len(raw), 8)]
            helpers = {int.from_bytes(word[4:], "little") for word in words if word[0] == call}
            assert helpers
            assert tail_call not in helpers


def test_in_a_sidecar(node: Node, namespaces: Make) -> None:
    inside = namespaces()
    link = node.endpoint(1, inside)
    datapath = node.open(source=compiler.PROGRAMS / "endpoint.c")
    try:
        datapath.attach(replace(link, ifindex=inside.ifindex("eth0"), netns=inside.path))
        assert not node.reaches(link.ipv4)
        datapath.set_policy(1, ALLOW_ALL)
        assert node.reaches(link.ipv4)
        (connection,) = [one for one in datapath.conntrack() if one.protocol == 6]
        assert (connection.endpoint, connection.own_port, connection.peer) == (1, 9, "10.0.0.254")
        datapath.detach(1)
        assert datapath.conntrack() == []
    finally:
        datapath.close()
