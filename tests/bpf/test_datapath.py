from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest

from bpf import maps, schema, syscall, tc
from bpf.datapath import Datapath, Link
from bpf.errors import BpfError, IpcacheFull, PolicyMapFull
from bpf.events import Event
from bpf.ipcache import prefix_key
from bpf.policies import PolicyEntry
from tests.bpf.nodes import ALLOW_ALL, SMALL, Namespace, Node

Make = Callable[[], Namespace]


def slots(datapath: Datapath) -> set[int]:
    """The slots that the policy map has entries of."""
    return {schema.POLICY_KEY.unpack(key)[1] for key, _ in datapath._maps["policy"].items()}


def test_an_endpoint_is_closed_until_it_has_a_policy(
    node: Node, datapath: Datapath, namespaces: Make
) -> None:
    link = node.endpoint(1, namespaces())
    assert node.reaches(link.ipv4)
    datapath.attach(link)
    assert not node.reaches(link.ipv4)
    datapath.set_policy(1, ALLOW_ALL)
    assert node.reaches(link.ipv4)
    datapath.set_policy(1, None)
    assert not node.reaches(link.ipv4)
    reasons = {(c.endpoint, c.ingress, c.reason) for c in datapath.counters() if c.packets}
    assert {(1, True, schema.FORWARDED), (1, False, schema.FORWARDED), (1, True, 165)} <= reasons
    assert datapath.attached() == {1: link}
    assert datapath.detach(1)
    assert not datapath.detach(1)
    assert node.reaches(link.ipv4)
    assert tc.filters(netns=node.namespace.path) == []
    assert all(not datapath._maps[m].items() for m in ("links", "endpoints", "addresses", "policy"))


def test_a_policy_may_come_before_its_endpoint(
    node: Node, datapath: Datapath, namespaces: Make
) -> None:
    link = node.endpoint(1, namespaces())
    datapath.set_policy(1, ALLOW_ALL)
    datapath.attach(link)
    assert node.reaches(link.ipv4)


def test_another_process_takes_over(node: Node, namespaces: Make) -> None:
    """Killed without a word; the next one compiles nothing, and takes its policies over."""
    link = node.endpoint(1, namespaces())
    first = node.open()
    first.set_identities({"10.0.0.0/8": 77})
    first.attach(link)
    first.set_policy(1, ALLOW_ALL)
    (slot,) = slots(first)
    first._policies.map.set(schema.POLICY_KEY.pack(72, slot + 5, 0, 0, 0, 0), bytes(8))
    os.close(first._lock_fd)  # as the kernel does for a process that ends
    second = node.open()
    try:
        assert second.programs.compiled == 0
        assert second.attached() == {1: link}
        assert second.identities() == {"10.0.0.0/8": 77, "::/0": 2}
        assert slots(second) == {slot}
        assert node.reaches(link.ipv4)
        epoch = second.epoch
        second.attach(link)
        second.set_policy(1, ALLOW_ALL)
        assert (second.epoch, slots(second)) == (epoch, {slot})
        second.set_policy(1, None)
        assert slots(second) == set()
        assert not node.reaches(link.ipv4)
    finally:
        second.close()


OWNER = """\
import sys, time
from pathlib import Path
from bpf.datapath import Datapath, DatapathConfig, Link
from tests.bpf.nodes import ALLOW_ALL, SMALL
root, cache, state, source, netns, ifindex = sys.argv[1:]
paths = map(Path, (root, cache, state))
datapath = Datapath.open(DatapathConfig(*paths, SMALL, source=Path(source), netns=netns))
datapath.attach(Link(1, int(ifindex), "10.0.0.1", "fd00::1", 301))
datapath.set_policy(1, ALLOW_ALL)
print("ready", flush=True)
while True:
    datapath.set_policy(1, ALLOW_ALL[:1])
    datapath.set_policy(1, ALLOW_ALL)
"""


def test_a_process_is_killed(node: Node, namespaces: Make) -> None:
    """At any moment: what is in force stays, and the next one cleans up behind it."""
    link = node.endpoint(1, namespaces())
    config = node.config
    arguments = (config.root, config.cache, config.state, config.source, config.netns)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, *map(str, arguments), str(link.ifindex)],
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            with pytest.raises(BpfError, match="in use"):
                node.open()
            owner.kill()
        assert node.reaches(link.ipv4)
    opened = node.open()
    try:
        assert opened.attached() == {1: link}
        assert len(slots(opened)) == 1
        assert node.reaches(link.ipv4)
    finally:
        opened.close()


def test_two_at_once_are_refused(node: Node, datapath: Datapath) -> None:
    with pytest.raises(BpfError, match="in use by another agent"):
        node.open()
    datapath.close()
    datapath.close()
    node.open().close()


def test_a_pin_of_another_size_is_replaced(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel would give a program that map: too short a value, without a word."""
    node.config.folder.mkdir(parents=True)
    wrong = syscall.Map(syscall.create_map(1, 4, 4, 16, 0, "endpoints"))
    syscall.pin(wrong.fd, node.config.folder / "endpoints")
    wrong.close()
    with caplog.at_level(logging.WARNING):
        opened = node.open()
    assert "endpoints is another map" in caplog.text
    assert opened._maps["endpoints"].info.value_size == schema.ENDPOINT.size
    opened.close()


def test_maps_made_anew_get_programs_of_their_own(node: Node) -> None:
    """A pinned program that looks up in maps that nobody fills would judge by nothing."""
    node.open().close()
    (node.config.folder / "links").unlink()
    opened = node.open()
    assert opened.programs.compiled == 1
    ids = {found.info.id for found in opened._maps.values()}
    assert all(syscall.program_maps(fd) <= ids for fd in opened.programs.node)
    opened.close()


def test_sizes_are_changed(node: Node) -> None:
    """The pins of before go; running connections stay known, and are judged again."""
    first = node.open()
    for n in range(100):
        key = schema.CONNTRACK_KEY.pack(1, 6, 0, n, 80, bytes(16))
        first._maps["conntrack"].set(key, bytes(schema.CONNTRACK_VALUE.size))
    first.bump()
    epoch = first.epoch
    first.close()
    sizes = {**SMALL, "conntrack": 2048}
    second = node.open(sizes=sizes)
    assert second._maps["conntrack"].count() == 100
    assert second.epoch == epoch + 1
    second.close()
    assert maps.folders(node.config.root) == [maps.folder(node.config.root, sizes)]


def test_another_layout_is_not_read(node: Node) -> None:
    first = node.open()
    first._maps["conntrack"].set(bytes(24), bytes(schema.CONNTRACK_VALUE.size))
    first.close()
    folder = node.config.folder
    other = folder.with_name("v1-12345678-" + folder.name.rpartition("-")[2])
    folder.rename(other)
    second = node.open()
    assert second._maps["conntrack"].count() == 0
    second.close()
    assert maps.folders(node.config.root) == [folder]


def test_connections_that_cannot_be_read(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.open(sizes={**SMALL, "conntrack": 2048}).close()
    (other,) = maps.folders(node.config.root)
    (other / "links").unlink()
    wrong = syscall.Map(syscall.create_map(1, 4, 4, 16, 0, "links"))
    syscall.pin(wrong.fd, other / "links")
    wrong.close()
    with caplog.at_level(logging.WARNING):
        node.open().close()
    assert "connections are not taken over" in caplog.text
    assert maps.folders(node.config.root) == [node.config.folder]


def test_pins_of_another_namespace_are_not_taken(node: Node, namespaces: Make) -> None:
    node.open().close()
    with pytest.raises(BpfError, match="is of another network namespace"):
        node.open(netns=namespaces().path)
    node.open().close()


def test_replacing_a_policy_is_one_step(node: Node, datapath: Datapath, namespaces: Make) -> None:
    """Its endpoint always has a slot with all entries of one policy."""
    datapath.attach(node.endpoint(1, namespaces()))
    sizes = (10, 300)
    policies = [[PolicyEntry(n + 1, True, 6, 80, 24, 1, 1) for n in range(size)] for size in sizes]
    datapath.set_policy(1, policies[0])
    endpoints, policy = datapath._maps["endpoints"], datapath._maps["policy"]
    seen: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            before = endpoints.get(schema.U32.pack(1))
            assert before is not None
            slot = schema.ENDPOINT.unpack(before)[1]
            entries = sum(key[4:8] == slot.to_bytes(4, "big") for key, _ in policy.items())
            if endpoints.get(schema.U32.pack(1)) == before:
                seen.add(entries)

    thread = threading.Thread(target=look)
    thread.start()
    for n in range(200):
        datapath.set_policy(1, policies[n % 2])
    stop.set()
    thread.join()
    assert seen <= set(sizes)
    assert datapath._maps["policy"].count() == sizes[1]


def test_equal_policies_share_a_slot(node: Node, datapath: Datapath, namespaces: Make) -> None:
    for number in (1, 2):
        datapath.attach(node.endpoint(number, namespaces()))
        datapath.set_policy(number, ALLOW_ALL)
    assert len(slots(datapath)) == 1
    datapath.set_policy(1, ALLOW_ALL[:1])
    assert len(slots(datapath)) == 2
    datapath.set_policy(1, ALLOW_ALL[::-1])
    assert len(slots(datapath)) == 1
    datapath.detach(1)
    assert node.reaches("10.0.0.2")


def test_a_policy_that_is_too_large_closes(node: Node, namespaces: Make) -> None:
    datapath = node.open(policy_max=4, sizes={**SMALL, "policy": 6})
    try:
        for number in (1, 2):
            datapath.attach(node.endpoint(number, namespaces()))
            datapath.set_policy(number, ALLOW_ALL)
        many = [PolicyEntry(n, True, 6, 80, 24, 1, 1) for n in range(1, 6)]
        with pytest.raises(PolicyMapFull, match="has 5 entries and may have 4"):
            datapath.set_policy(1, many)
        assert not node.reaches("10.0.0.1")
        datapath.set_policy(1, many[:4])
        with pytest.raises(PolicyMapFull, match=r"the policy map \(6 entries"):
            datapath.set_policy(2, [*ALLOW_ALL[:1], *many[:2]])
        assert not node.reaches("10.0.0.2")
        assert datapath.failures == {"policy": 2}
        assert len(slots(datapath)) == 1
        datapath.set_policy(2, ALLOW_ALL)
        assert node.reaches("10.0.0.2")
        assert datapath.pressure()["policy"] == 1.0
    finally:
        datapath.close()


def test_a_full_ipcache_closes_what_it_cannot_tell_apart(node: Node) -> None:
    datapath = node.open(sizes={**SMALL, "ipcache": 3})

    def answer(address: str) -> int:
        found = datapath._maps["ipcache"].get(prefix_key(address))
        assert found is not None
        return int(schema.U32.unpack(found)[0])

    try:
        datapath.set_identities({"10.0.0.0/8": 8, "10.1.0.0/16": 16})
        with pytest.raises(IpcacheFull, match=r"1 prefixes have no room .*10\.1\.2\.3/32"):
            datapath.set_identities({"10.1.2.3": 32})
        assert datapath.failures == {"ipcache": 1}
        assert answer("10.1.2.3") == answer("10.1.9.9") == 0xFFFFFFFF
        assert (answer("10.2.0.1"), answer("192.168.0.1")) == (8, 2)
        datapath.set_identities({"10.0.0.0/8": None})
        assert (answer("10.1.2.3"), answer("10.1.9.9"), answer("10.2.0.1")) == (32, 16, 2)
    finally:
        datapath.close()


def test_the_epoch_is_raised_once(node: Node, datapath: Datapath, namespaces: Make) -> None:
    link = node.endpoint(1, namespaces())
    before = datapath.epoch
    with datapath.transaction():
        datapath.attach(link)
        datapath.set_policy(1, ALLOW_ALL)
        datapath.set_identities({"10.9.0.0/16": 9})
        assert datapath.epoch == before
    assert datapath.epoch == before + 1
    datapath.set_policy(1, ALLOW_ALL)
    datapath.set_identities({"10.9.0.0/16": 9, "10.8.0.0/16": None})
    datapath.update(link)
    assert datapath.epoch == before + 1
    datapath.bump()
    assert datapath.epoch == before + 2


def test_a_transaction_that_fails(node: Node, datapath: Datapath, namespaces: Make) -> None:
    before = datapath.epoch

    def fail() -> None:
        with datapath.transaction():
            datapath.attach(node.endpoint(1, namespaces()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert datapath.epoch == before + 1


def test_events_are_read(node: Node, datapath: Datapath, namespaces: Make) -> None:
    link = node.endpoint(1, namespaces())
    datapath.attach(link)
    seen: list[Event] = []
    arrived = threading.Event()

    def callback(events: Sequence[Event]) -> None:
        seen.extend(events)
        if any(event.endpoint == 1 and event.ingress for event in events):
            arrived.set()

    datapath.events(callback)
    assert not node.reaches(link.ipv4)
    assert arrived.wait(10)
    event = next(event for event in seen if event.ingress)
    assert (event.text, event.ifindex) == (schema.REASON_TEXTS[165], link.ifindex)
    datapath.events(None)
    assert datapath.lost == 0


def test_many_threads(node: Node, datapath: Datapath, namespaces: Make) -> None:
    endpoints = [node.endpoint(number, namespaces()) for number in range(1, 5)]
    errors: list[BaseException] = []

    def work(link: Link) -> None:
        try:
            for n in range(20):
                with datapath.transaction():
                    datapath.attach(link)
                    datapath.set_policy(link.number, ALLOW_ALL[: 1 + n % 2])
                    datapath.set_identities({link.ipv4: link.identity + n})
                if n % 5 == 4:
                    datapath.detach(link.number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(link,)) for link in endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert datapath.attached() == {}
    assert datapath._maps["policy"].count() == 0
    assert datapath._maps["endpoints"].count() == 0
