"""What is told of attachments, while interfaces and namespaces come, change and go."""

from __future__ import annotations

import queue
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from demos.namespaces import Lab
from node.links import watcher
from node.links.discovery import Attachment, discover, refresh
from node.links.watcher import LinkWatcher
from tests.conftest import MakeLab


@dataclass
class Heard:
    """What a watcher calls."""

    watcher: LinkWatcher
    calls: queue.Queue[tuple[Any, ...]] = field(default_factory=queue.Queue)

    def next(self) -> tuple[Any, ...]:
        return self.calls.get(timeout=10)


@contextmanager
def watching(lab: Lab, **more: Any) -> Iterator[Heard]:
    calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
    with (
        lab.node.entered(),
        LinkWatcher(
            lambda number, why: calls.put(("gone", number, why)),
            lambda number, now: calls.put(("renamed", number, now)),
            lambda number, missing: calls.put(("addresses", number, missing)),
        ) as made,
    ):
        for number, endpoint in enumerate(lab, 1):
            made.watch(number, discover(netns=endpoint.netns))
        yield Heard(made, calls)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def test_an_interface_goes(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with watching(lab) as heard:
        lab.node.ip("link del lxc2")
        assert heard.next() == ("gone", 2, "interface lxc2 (number 3) is gone")
        lab["client"].ip("link del eth0")
        assert heard.next()[:2] == ("gone", 1)
        assert heard.calls.empty()


def test_a_namespace_goes(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with watching(lab) as heard:
        ip("netns", "del", lab["client"].netns)
        assert heard.next()[:2] == ("gone", 1)
        assert heard.watcher.working


def test_an_interface_moves_away(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with watching(lab) as heard:
        lab["client"].ip(f"link set eth0 netns {lab['server'].netns} name eth9")
        kind, number, why = heard.next()
        assert (kind, number) == ("gone", 1)
        assert "eth0" in why


def test_names_change(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    with watching(lab) as heard:
        before = discover(netns=lab["client"].netns)
        lab.node.ip("link set lxc1 name other")
        assert heard.next() == ("renamed", 1, replace(before, interface="other"))
        lab["client"].ip("link set eth0 name net0")
        assert heard.next() == ("renamed", 1, replace(before, interface="other", inner="net0"))
        lab.node.ip("link del other")
        assert heard.next()[:2] == ("gone", 1)


def test_addresses_go_and_come(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    client = lab["client"]
    with watching(lab) as heard:
        client.ip(f"addr del {client.ipv4}/32 dev eth0")
        assert heard.next() == ("addresses", 1, (client.ipv4,))
        client.ip("addr add 10.1.0.99/32 dev eth0", f"addr add {client.ipv4}/32 dev eth0")
        assert heard.next() == ("addresses", 1, ())


def test_who_is_forgotten_is_not_told(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with watching(lab) as heard:
        heard.watcher.forget(1)
        lab.node.ip("link del lxc1")
        lab.node.ip("link del lxc2")
        assert heard.next()[:2] == ("gone", 2)
        assert heard.calls.empty()


def test_what_happened_before_is_told(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    with lab.node.entered():
        attachment = discover(netns=lab["client"].netns)
    lab.node.ip("link del lxc1")
    calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
    with lab.node.entered(), LinkWatcher(lambda *a: calls.put(a), lambda *a: None) as made:
        made.watch(7, attachment)
        assert calls.get(timeout=10)[0] == 7


def test_a_callback_that_fails_ends_nothing(
    make_lab: MakeLab, caplog: pytest.LogCaptureFixture
) -> None:
    lab = make_lab("client", "server")
    calls: queue.Queue[int] = queue.Queue()

    def gone(number: int, why: str) -> None:
        calls.put(number)
        raise RuntimeError("not today")

    with lab.node.entered(), LinkWatcher(gone, lambda *told: None) as made:
        for number, endpoint in enumerate(lab, 1):
            made.watch(number, discover(netns=endpoint.netns))
        lab.node.ip("link del lxc1")
        assert calls.get(timeout=10) == 1
        lab.node.ip("link del lxc2")
        assert calls.get(timeout=10) == 2
    assert caplog.text.count("is not taken up") == 2


def test_what_cannot_be_looked_at_is_tried_again(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("out of order")] * 3)

    def sometimes(attachment: Attachment) -> Attachment:
        for failure in failures:
            raise failure
        return refresh(attachment)

    monkeypatch.setattr(watcher, "refresh", sometimes)
    monkeypatch.setattr(watcher, "RETRY", 0.05)
    lab = make_lab("client")
    with watching(lab) as heard:
        lab.node.ip("link del lxc1")
        assert heard.next()[:2] == ("gone", 1)
        assert heard.watcher.working
    assert caplog.text.count("its link cannot be looked at") == 1


def test_events_that_make_no_sense_are_looked_into(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watcher, "_about", lambda message, nsid: message["nothing of ours"])
    lab = make_lab("client")
    with watching(lab) as heard:
        lab.node.ip("link del lxc1")
        assert heard.next()[:2] == ("gone", 1)
    assert "is not understood" in caplog.text


def test_events_that_are_lost_do_no_harm(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops what does not fit, and says so: then everything is looked at."""
    monkeypatch.setattr(watcher, "_BUFFER", 2048)
    monkeypatch.setattr(watcher, "SETTLE", 1.0)
    lab = make_lab("client", "server")
    with watching(lab) as heard:
        lines = [f"link set lxc2 alias {number:0100d}" for number in range(200)]
        lab.node.ip(*lines, "link del lxc1")
        assert heard.next()[:2] == ("gone", 1)
        assert heard.calls.empty()
