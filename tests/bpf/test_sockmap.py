"""Real connections between namespaces, with and without acceleration.

The test's own process is moved into a cgroup, and the programs are attached to that: no socket
of another process is seen by them, whatever its addresses are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from benchmarks.sockmap import ENVOY_PORT, proxy
from bpf import compiler, maps, selftest, sockmap, sockmap_programs, syscall, tc
from bpf.btf import Btf
from bpf.compiler import PROGRAMS
from bpf.errors import BpfError
from bpf.selftest import Check, Refused, SelfTest
from bpf.sockmap import Counts, Sockmap, SockmapConfig
from demos.namespaces import NODE_IPV4, Endpoint, Lab, Namespace
from tests.bpf.test_schema import from_c

ROOT = Path(__file__).parents[2]
PORT = 7000
PASSED = SelfTest((Check("nothing", True, "Not tested here."),))


@pytest.fixture
def cgroup(privileged: None) -> Iterator[Path]:
    """A cgroup that this process is in until the test ends."""
    root = sockmap.cgroup_root()
    mounted = Path("/proc/self/cgroup").read_text()
    home = root / next(x for x in mounted.splitlines() if x.startswith("0::"))[4:]
    where = root / f"proxylib-test-{os.getpid()}"
    where.mkdir(exist_ok=True)
    (where / "cgroup.procs").write_text(str(os.getpid()))
    yield where
    (home / "cgroup.procs").write_text(str(os.getpid()))
    for _ in range(100):  # processes that were killed leave in a moment
        with suppress(OSError):
            where.rmdir()
            return
        time.sleep(0.02)
    where.rmdir()


@pytest.fixture
def lab(privileged: None) -> Iterator[Lab]:
    with Lab("client", "server") as made:
        yield made


@pytest.fixture
def config(bpffs: Path, cache: Path, cgroup: Path, lab: Lab) -> SockmapConfig:
    return SockmapConfig(bpffs, cache, cgroup, str(lab.node.path))


@pytest.fixture
def accelerated(config: SockmapConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sockmap]:
    """The programs in force; the self-test has its own tests."""
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    with Sockmap.open(config) as opened:
        yield opened


def listening(where: Namespace, address: str, blocking: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with where.entered():
        listener = socket.create_server((address, PORT), family=family)
    listener.setblocking(blocking)
    return listener


def connected(
    where: Namespace, listener: socket.socket, to: tuple[str, int] | None = None
) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection, non-blocking."""
    address = to or listener.getsockname()
    with where.entered():
        client = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    client.setblocking(False)
    client.connect_ex(address)
    ready([], [client])
    ready([listener], [])
    server, _ = listener.accept()
    for end in (client, server):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def ready(readers: list[socket.socket], writers: list[socket.socket]) -> None:
    assert select.select(readers, writers, [], 10) != ([], [], []), "nothing happens"


def exchange(client: socket.socket, server: socket.socket, rounds: int = 10) -> None:
    """Questions and answers, each as it was sent."""
    for n in range(rounds):
        for out, into in ((client, server), (server, client)):
            word = b"%d:%d" % (n, rounds)
            assert out.send(word) == len(word)
            got = b""
            while len(got) < len(word):
                ready([into], [])
                got += into.recv(100)
            assert got == word


def since(before: Counts, sockmap: Sockmap) -> Counts:
    """What was added to the counts."""
    after = sockmap.counts()
    return Counts(*(getattr(after, n) - getattr(before, n) for n in Counts.__slots__))


def exchanged(sockmap: Sockmap, *pairs: tuple[socket.socket, socket.socket]) -> Counts:
    """What ten exchanges over each pair add to the counts."""
    before = sockmap.counts()
    for pair in pairs:
        exchange(*pair)
    return since(before, sockmap)


def mostly_direct(found: Counts) -> bool:
    """Of ten exchanges, the first message of each way goes by the wire; the second may follow it
    there, if its acknowledgement is late."""
    return 14 <= found.messages <= 18 and found.messages + found.unproven + found.unread == 20


def netns(endpoint: Endpoint) -> str:
    return str(endpoint.path)


def addresses(*endpoints: Endpoint) -> list[str]:
    return [a for e in endpoints for a in (e.ipv4, e.ipv6)]


def test_layouts_are_those_of_c(tmp_path: Path) -> None:
    wanted, asked = {}, {}
    for layout in (sockmap_programs.CONNECTION, sockmap_programs.PEER, sockmap_programs.LISTENER):
        asked[layout.name] = f"sizeof(struct {layout.name})"
        wanted[layout.name] = layout.size
        for field, offset in layout.offsets().items():
            asked[f"{layout.name}.{field}"] = f"offsetof(struct {layout.name}, {field})"
            wanted[f"{layout.name}.{field}"] = offset
    asked["own"], wanted["own"] = "sizeof(struct own)", sockmap_programs.OWN.size
    for n, name in enumerate(sockmap_programs.MAPS):
        asked[name], wanted[name] = f"MAP_{name.upper()}", sockmap_programs.FIRST_MAP + n
    for n, name in enumerate(Counts.__slots__):
        asked[f"count {name}"], wanted[f"count {name}"] = f"COUNT_{name.upper()}", n
    asked = {key.replace(" ", "_"): value for key, value in asked.items()}
    assert from_c(asked, tmp_path, "sockmap.h") == {
        k.replace(" ", "_"): v for k, v in wanted.items()
    }
    source = (PROGRAMS / "sockmap.c").read_text()
    assert set(re.findall(r"\bOFFSET_([A-Z0-9_]+)", source)) == set(sockmap_programs.OFFSETS)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_two_endpoints_that_joined(accelerated: Sockmap, lab: Lab, family: str) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    assert accelerated.members() == set(addresses(client, server))
    with listening(server, getattr(server, family)) as listener:
        one, other = connected(client, listener)
        with one, other:
            found = exchanged(accelerated, (one, other))
    assert mostly_direct(found), found
    assert found.bytes == found.messages * 4


def test_nobody_is_accelerated_unasked(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    for joined in ([], addresses(client), addresses(server)):
        accelerated.join(joined)
        with listening(server, server.ipv4) as listener:
            one, other = connected(client, listener)
            with one, other:
                found = exchanged(accelerated, (one, other))
        assert found.messages == 0, joined
        accelerated.leave(joined)


def test_the_same_address_elsewhere(accelerated: Sockmap, lab: Lab) -> None:
    """Who joined is a namespace's address: a socket of another that has it did not."""
    client, server = lab["client"], lab["server"]
    for where, wanted in ((server, False), (client, True)):
        accelerated.join(addresses(client), netns(where))
        accelerated.join(addresses(server), netns(server))
        with listening(server, server.ipv4) as listener:
            one, other = connected(client, listener)
            with one, other:
                assert mostly_direct(exchanged(accelerated, (one, other))) == wanted


def test_a_server_pays_nothing_for_other_clients(accelerated: Sockmap, lab: Lab) -> None:
    """Its socket is not in the map unless the client's is."""
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            assert accelerated.counts().sockets == 0


def test_programs_that_block_keep_tcp(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4, blocking=True) as listener:
        one, other = connected(client, listener)
        with one, other:
            found = exchanged(accelerated, (one, other))
    assert found.messages == 0
    assert accelerated.counts().blocking_sockets == 1
    with listening(server, server.ipv4) as listener:
        with client.entered():
            one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        one.setblocking(False)
        other.setblocking(False)
        with one, other:
            found = exchanged(accelerated, (one, other))
    assert found.messages == 0
    assert accelerated.counts().blocking_sockets == 2


def test_a_reader_that_begins_to_block(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            other.setblocking(True)
            found = exchanged(accelerated, (one, other))
            assert (found.blocking, found.messages) == (10, 10)
            other.setblocking(False)
            found = exchanged(accelerated, (one, other))
            assert found.messages == 20


def test_listeners_that_were_there_before(
    config: SockmapConfig, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = lab["client"], lab["server"]
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    with ExitStack() as stack:
        exact = stack.enter_context(listening(server, server.ipv6))
        with server.entered():
            wild = socket.create_server(
                ("::", PORT + 1), family=socket.AF_INET6, dualstack_ipv6=True
            )
        stack.enter_context(wild).setblocking(False)
        opened = stack.enter_context(Sockmap.open(config))
        opened.join(addresses(client, server))
        pair = [stack.enter_context(end) for end in connected(client, exact)]
        assert exchanged(opened, (pair[0], pair[1])).messages == 0
        opened.join(addresses(server), netns(server))
        for listener, to in (
            (exact, (server.ipv6, PORT)),
            (wild, (server.ipv6, PORT + 1)),
            (wild, (server.ipv4, PORT + 1)),
        ):
            pair = [stack.enter_context(end) for end in connected(client, listener, to)]
            assert mostly_direct(exchanged(opened, (pair[0], pair[1]))), to


def test_leaving(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            accelerated.leave(addresses(client))
            assert exchanged(accelerated, (one, other)).messages == 0
            accelerated.join(addresses(client))
            assert exchanged(accelerated, (one, other)).messages > 15


def test_a_change_of_policy_is_judged_by_the_wire(accelerated: Sockmap, lab: Lab) -> None:
    """A connection that policy has cut is cut although its bytes went past the stack."""
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            accelerated.bump()
            found = exchanged(accelerated, (one, other))
            assert found.unproven >= 2
            assert mostly_direct(found), found
            lab.node.ip(f"route replace blackhole {server.ipv4}/32")
            exchange(one, other, 3)  # nothing asks the wire
            accelerated.bump()
            for _ in range(5):
                one.send(b"after")
            assert select.select([other], [], [], 0.5)[0] == []


def stream(one: socket.socket, other: socket.socket, size: int, now: Callable[[int], None]) -> None:
    """A stream whose reader gets every byte, in order, while `now` is told how far it is."""
    chance = random.Random(size)
    data = memoryview(chance.randbytes(size))
    digest, sent, got = hashlib.blake2b(), 0, 0
    last = time.monotonic()
    while got < size:
        now(got)
        moved = 0
        for _ in range(chance.randrange(1, 6)):
            with suppress(BlockingIOError):
                at = sent + moved
                moved += one.send(data[at : at + chance.randrange(1, 60_000)])
        sent += moved
        for _ in range(chance.randrange(6)):
            with suppress(BlockingIOError):
                part = other.recv(100_000)
                digest.update(part)
                got += len(part)
                moved += len(part)
        last = time.monotonic() if moved else last
        assert time.monotonic() - last < 5, f"hangs at {got} of {size}"
    assert digest.digest() == hashlib.blake2b(data).digest()


def test_switching_under_load(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    turns = 0

    def now(_: int) -> None:
        nonlocal turns
        turns += 1
        if turns % 7 == 0:
            accelerated.switch(turns % 14 == 0)
        if turns % 50 == 0:
            accelerated.leave(addresses(client))
        if turns % 50 == 5:
            accelerated.join(addresses(client))

    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            before = accelerated.counts()
            stream(one, other, 32 << 20, now)
            found = since(before, accelerated)
            assert found.messages > 50
            assert found.off > 50
            accelerated.switch(False)
            assert not accelerated.on
            assert exchanged(accelerated, (one, other)).messages == 0
        one, other = connected(client, listener)
        with one, other:
            accelerated.switch(True)
            assert exchanged(accelerated, (one, other)).messages == 0


def test_equal_addresses_and_ports_of_the_two_legs(accelerated: Sockmap, lab: Lab) -> None:
    """A proxy that keeps both ends' addresses and ports: its two sockets mirror each other, and
    so do the client's and the server's. Each must find its own peer."""
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    lab.node.ip("route add local default dev lo table 100")
    for endpoint in (client, server):
        lab.node.ip(f"rule add iif {endpoint.interface} lookup 100")
        lab.node.sysctl(f"ipv4/conf/{endpoint.interface}/rp_filter", 0)
    lab.node.sysctl("ipv4/conf/all/rp_filter", 0)

    def transparent(mark: int) -> socket.socket:
        with lab.node.entered():
            made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        return made

    with ExitStack() as stack:
        front = stack.enter_context(transparent(0xB00))
        front.bind((server.ipv4, PORT))
        front.listen()
        behind = stack.enter_context(listening(server, server.ipv4))
        one, accepted = map(stack.enter_context, connected(client, front))
        upstream = stack.enter_context(transparent(0xA00))
        upstream.bind(one.getsockname())
        upstream.connect_ex((server.ipv4, PORT))
        ready([behind], [])
        other = stack.enter_context(behind.accept()[0])
        other.setblocking(False)
        assert one.getsockname() == upstream.getsockname()
        assert accepted.getsockname() == other.getsockname()
        for _ in range(3):
            exchange(one, accepted)
            exchange(upstream, other)
        found = exchanged(accelerated, (one, accepted), (upstream, other))
        assert found.messages == 40


ASYNCIO = """
import asyncio, hashlib, sys

async def serve(host, port):
    async def answer(reader, writer):
        digest = hashlib.blake2b()
        while data := await reader.read(1 << 18):
            digest.update(data)
        writer.write(digest.digest())
        writer.write_eof()
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(answer, host, port)
    print("ready", flush=True)
    await server.serve_forever()

async def upload(host, port, count):
    async def one(number):
        reader, writer = await asyncio.open_connection(host, port)
        digest = hashlib.blake2b()
        for size in range(200):
            part = bytes([number]) * (size * 300 + 1)
            digest.update(part)
            writer.write(part)
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == digest.digest(), "bytes were lost or mixed up"
        writer.close()
        await writer.wait_closed()
    await asyncio.gather(*(one(number) for number in range(count)))

task = {"serve": serve, "upload": upload}[sys.argv[1]]
asyncio.run(task(sys.argv[2], *map(int, sys.argv[3:])))
"""
"""A server that answers with the digest of what it got, and a client of many uploads."""


def asyncio_server(where: Endpoint) -> subprocess.Popen[str]:
    program = (sys.executable, "-c", ASYNCIO, "serve", where.ipv4, str(PORT))
    process = where.popen(*program, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def upload(where: Endpoint, host: str, port: int) -> None:
    program = (sys.executable, "-c", ASYNCIO, "upload", host, str(port), "20")
    done = where.run(*program, timeout=40)
    assert done.returncode == 0, done.stderr


def test_asyncio_programs(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    process = asyncio_server(server)
    upload(client, server.ipv4, PORT)
    found = accelerated.counts()
    assert found.sockets == 40
    assert found.messages > 400, found
    process.terminate()
    process.wait()
    process.stdout.close()
    assert accelerated.sockets() == 0, "closed sockets leave nothing in the maps"


def test_envoy(accelerated: Sockmap, lab: Lab, tmp_path: Path) -> None:
    """A real Envoy between two endpoints: its legs to those that joined are accelerated."""
    client, server = lab["client"], lab["server"]
    process = asyncio_server(server)
    with proxy(tmp_path, lab, server):
        for joined, sockets in (((client, server), 80), ((client,), 40), ((server,), 40)):
            before = accelerated.counts()
            accelerated.join(addresses(*joined))
            upload(client, NODE_IPV4, ENVOY_PORT)
            accelerated.leave(addresses(*joined))
            found = since(before, accelerated)
            assert found.sockets == sockets, joined
            assert found.messages > 200, (joined, found)
    process.terminate()
    process.wait()
    process.stdout.close()


def test_a_slow_reader_is_bounded(accelerated: Sockmap, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            sent = 0
            while sent < 64 << 20 and select.select([], [one], [], 0.3)[1]:
                sent += one.send(b"z" * 60_000)
            assert sent < 16 << 20
            assert accelerated.counts().full > 0
            got = 0
            while got < sent:
                ready([other], [])
                got += len(other.recv(1 << 20))
            found = exchanged(accelerated, (one, other), (one, other))
            assert found.messages > 20  # it is past the stack again


def test_a_full_map(config: SockmapConfig, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom it has no room for goes by the wire, and so does who is in it with no peer in it."""
    client, server = lab["client"], lab["server"]
    small = dataclasses.replace(sockmap_programs.MAPS["sockets"], size=3)
    monkeypatch.setattr(sockmap_programs, "MAPS", {**sockmap_programs.MAPS, "sockets": small})
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    with Sockmap.open(config) as opened, ExitStack() as stack:
        opened.join(addresses(client, server))
        listener = stack.enter_context(listening(server, server.ipv4))
        pairs = []
        for _ in range(3):
            one, other = connected(client, listener)
            pairs.append((stack.enter_context(one), stack.enter_context(other)))
        assert (opened.counts().sockets, opened.counts().no_room) == (3, 2)
        assert opened.sockets() == 3
        assert [exchanged(opened, pair).messages > 0 for pair in pairs] == [True, False, False]
        for end in pairs[0]:
            end.close()
        one, other = connected(client, listener)
        with one, other:
            assert mostly_direct(exchanged(opened, (one, other)))


def test_a_kernel_without_types(config: SockmapConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    monkeypatch.setattr(sockmap_programs, "Btf", lambda: Btf(Path("/no/such/vmlinux")))
    with pytest.raises(BpfError, match="CONFIG_DEBUG_INFO_BTF"):
        Sockmap.open(config)
    assert sockmap.folders(config.root) == []


BARE_ACKS = """
#include "common.h"

int drop(struct __sk_buff *skb)
{
	u8 protocol = 0, flags = 0, words = 0;
	u16 length = 0;

	bpf_skb_load_bytes(skb, 14 + 2, &length, 2);
	bpf_skb_load_bytes(skb, 14 + 9, &protocol, 1);
	bpf_skb_load_bytes(skb, 14 + 20 + 12, &words, 1);
	bpf_skb_load_bytes(skb, 14 + 20 + 13, &flags, 1);
	return protocol == 6 && flags == 0x10 && bpf_ntohs(length) == 20 + words / 16 * 4 ? 2 : 0;
}
"""


def test_handshakes_that_lose_their_last_ack(
    accelerated: Sockmap, lab: Lab, cache: Path, tmp_path: Path
) -> None:
    """Bare ACKs to the server are dropped; the client's first bytes make the connection there."""
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    source = tmp_path / "drop.c"
    source.write_text(BARE_ACKS)
    fd = compiler.load(compiler.compile_source(source, cache), "drop", {})
    link = lab.node.ifindex(server.interface)
    tc.attach(link, tc.Hook.EGRESS, fd, "drop", str(lab.node.path))
    os.close(fd)
    with listening(server, server.ipv4) as listener:
        for n in range(20):
            with client.entered():
                one = socket.socket()
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.connect_ex((server.ipv4, PORT))
            ready([], [one])
            assert select.select([listener], [], [], 0.01)[0] == []
            one.send(b"00000;")
            ready([listener], [])
            other, _ = listener.accept()
            other.setblocking(False)
            with one, other:
                wanted = b"".join(b"%05d;" % word for word in range(1, 30))
                for at in range(0, len(wanted), 6):
                    one.send(wanted[at : at + 6])
                got = b""
                while len(got) < len(wanted) + 6:
                    ready([other], [])
                    got += other.recv(1000)
                assert got == b"00000;" + wanted, n


def test_a_second_loader_takes_over(accelerated: Sockmap, config: SockmapConfig, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            with Sockmap.open(config) as second:
                assert second.members() == accelerated.members()
                assert exchanged(second, (one, other)).messages == 20
            one_more, its_other = connected(client, listener)
            with one_more, its_other:
                assert mostly_direct(exchanged(accelerated, (one_more, its_other)))


def test_a_loader_that_is_killed_and_what_cleanup_leaves(config: SockmapConfig, lab: Lab) -> None:
    client, server = lab["client"], lab["server"]
    loader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from bpf import selftest, sockmap;"
            "selftest.run = lambda *_: selftest.SelfTest(());"
            "s = sockmap.Sockmap.open(sockmap.SockmapConfig(*map(Path, sys.argv[1:4])));"
            "s.join(sys.argv[4:]); print('ready', flush=True); sys.stdin.read()",
            *map(str, (config.root, config.cache, config.cgroup)),
            *addresses(client, server),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with loader:
        assert loader.stdout is not None
        assert loader.stdout.readline() == "ready\n"
        loader.send_signal(signal.SIGKILL)
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other, 20)
            assert config.root is not None
            (folder,) = sockmap.folders(config.root)
            pinned = maps.open_maps(folder, {}, sockmap_programs.MAPS)["counts"]
            raw = pinned.get(struct.pack("=I", 0)) or b""
            assert sum(struct.unpack(f"={syscall.possible_cpus()}Q", raw)) >= 34
            one.send(b"unread")
            assert sockmap.cleanup(config.root) == [folder]
            assert sockmap.cleanup(config.root) == []
            assert not folder.exists()
            ready([other], [])
            assert other.recv(100) == b"unread"
            exchange(one, other)
            stream(one, other, 4 << 20, lambda _: None)
        # With its last connection everything is gone; nothing is attached to the cgroup.
        assert config.cgroup is not None
        assert attached(config.cgroup) == 0


def attached(cgroup: Path) -> int:
    """How many sock_ops programs a cgroup has (BPF_PROG_QUERY)."""
    place = os.open(cgroup, os.O_RDONLY)
    try:
        attributes = bytearray(struct.pack("=IIIIQII", place, 3, 0, 0, 0, 0, 0))
        syscall.bpf(16, attributes)
        return int(struct.unpack_from("=I", attributes, 24)[0])
    finally:
        os.close(place)


def test_cleanup_under_load(
    config: SockmapConfig, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = lab["client"], lab["server"]
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    opened = Sockmap.open(config)
    opened.join(addresses(client, server))
    before, direct = opened.counts(), 0

    def now(got: int) -> None:
        nonlocal direct
        assert config.root is not None
        if got > 8 << 20 and not direct:
            direct = since(before, opened).messages
            opened.close()
            assert len(sockmap.cleanup(config.root)) == 1

    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            stream(one, other, 24 << 20, now)
            exchange(one, other)
    assert direct > 20
    assert config.cgroup is not None
    assert attached(config.cgroup) == 0


def test_what_another_release_left_is_retired(
    accelerated: Sockmap, config: SockmapConfig, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = lab["client"], lab["server"]
    accelerated.join(addresses(client, server))
    assert config.root is not None
    with listening(server, server.ipv4) as listener:
        one, other = connected(client, listener)
        with one, other:
            exchange(one, other)
            monkeypatch.setattr(sockmap, "fingerprint", lambda _: "newer")
            with Sockmap.open(config) as newer:
                assert [path.name for path in sockmap.folders(config.root)] == ["sockmap-newer"]
                assert exchanged(accelerated, (one, other)).off == 20
                newer.join(addresses(client, server))
                one_more, its_other = connected(client, listener)
                with one_more, its_other:
                    assert exchanged(newer, (one_more, its_other)).messages == 0
        with Sockmap.open(config) as newer, listening(server, server.ipv6) as known:
            one, other = connected(client, known)
            with one, other:
                assert mostly_direct(exchanged(newer, (one, other)))


def test_a_loader_that_ended_half_way(
    config: SockmapConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "run", lambda *_: PASSED)
    assert config.root is not None
    assert config.cgroup is not None
    where = config.root / f"{sockmap.PREFIX}{sockmap_programs.fingerprint(config.cgroup)}"
    maps.close_maps(maps.open_maps(where, {}, sockmap_programs.MAPS))
    with Sockmap.open(config) as opened:
        assert opened.on
        assert (where / sockmap.LINK).exists()


def test_refused_where_the_self_test_fails(
    config: SockmapConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SelfTest((Check("order", False, "Bytes swim."),))
    monkeypatch.setattr(selftest, "run", lambda *_: broken)
    with Sockmap.open(config) as opened:
        assert opened.self_test == broken
        with pytest.raises(Refused, match=r"Bytes swim\."):
            opened.join(["10.0.0.1"])
        assert opened.members() == frozenset()


def test_bad_input(accelerated: Sockmap, config: SockmapConfig) -> None:
    for address in ("", "10.0.0", "10.0.0.1/32", "no.address"):
        with pytest.raises(BpfError, match="address"):
            accelerated.join([address])
    with pytest.raises(BpfError, match="no-such"):
        accelerated.join(["10.0.0.1"], "/run/netns/no-such")
    missing = SockmapConfig(None, config.cache, Path("/sys/fs/cgroup/no-such"))
    with pytest.raises(BpfError, match="no-such"):
        Sockmap.open(missing)
