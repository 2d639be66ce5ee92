from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bpf import compiler, syscall
from bpf.events import Event, EventReader, RingBuffer, decode
from bpf.ipcache import address_bytes
from bpf.schema import EVENT, EventFlags, EventType
from bpf.syscall import Map

SOURCE = """\
#include "common.h"
int tell(struct __sk_buff *skb)
{
	void *map = (void *)bpf_pseudo_fd(1, MAP_EVENTS);
	struct event event = {.type = EVENT_DROP, .length = skb->len, .reason = 133};

	return bpf_ringbuf_output(map, &event, sizeof(event), 0) ? 1 : 0;
}
"""
SIZE = 4096


@pytest.fixture
def table(privileged: None) -> Iterator[Map]:
    made = Map(syscall.create_map(27, 0, 0, SIZE, 0, "events"))
    yield made
    made.close()


@pytest.fixture
def program(table: Map, cache: Path, tmp_path: Path) -> Iterator[int]:
    """A program that tells one event for each packet; its answer is 1 if there is no room."""
    (tmp_path / "tell.c").write_text(SOURCE)
    code = compiler.compile_source(tmp_path / "tell.c", cache)
    fd = compiler.load(code, "tell", {"events": table.fd})
    yield fd
    os.close(fd)


def raw(**fields: int | bytes) -> bytes:
    zeros = {n: bytes(16) if kind == "addr" else 0 for n, kind in EVENT.fields.items()}
    return EVENT.pack(*(zeros | fields).values())


def test_decode() -> None:
    event = decode(
        raw(
            time=1_500_000_000,
            type=1,
            direction=1,
            reason=181,
            flags=3,
            protocol=6,
            source=address_bytes("10.0.0.1"),
            destination=address_bytes("fd00::1"),
            source_port=40000,
            destination_port=80,
            proxy_port=10001,
        )
    )
    assert event.time == 1.5
    assert (event.type, event.ingress) == (EventType.DROP, True)
    assert event.text == "Policy denied by denylist"
    assert event.flags == EventFlags.IPV6 | EventFlags.REPLY
    assert (event.source, event.source_port) == ("10.0.0.1", 40000)
    assert (event.destination, event.destination_port) == ("fd00::1", 80)
    assert event.proxy_port == 10001


def test_words() -> None:
    assert decode(raw(type=1, reason=99)).text == "unknown reason 99"
    assert decode(raw(type=2, reason=2)).text == "reply"
    assert decode(raw(type=2, reason=77)).text == "unknown point 77"
    assert decode(raw(type=3, verdict=1)).text == ""


@pytest.mark.parametrize("data", [b"", bytes(8), raw(type=9), raw(type=1) + b"x"])
def test_what_is_no_event(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_every_event_arrives_once(table: Map, program: int) -> None:
    """Around the buffer's end many times."""
    ring = RingBuffer(table)
    told = 0
    for n in range(40):
        for _ in range(1 + n % 30):
            assert syscall.run_program(program, bytes(64 + n)).code == 0
            told += 1
        found = [decode(one) for one in ring.take()]
        assert [event.length for event in found] == [64 + n] * (1 + n % 30)
        assert ring.take() == []
    assert told * (EVENT.size + 8) > 10 * SIZE
    ring.close()


def test_a_full_buffer(table: Map, program: int) -> None:
    ring = RingBuffer(table)
    room = SIZE // (EVENT.size + 8)
    answers = [syscall.run_program(program, bytes(64)).code for _ in range(room + 5)]
    assert answers[:room] == [0] * room
    assert answers[-5:] == [1] * 5
    assert len(ring.take(3)) == 3
    assert len(ring.take()) == room - 3
    assert syscall.run_program(program, bytes(64)).code == 0
    ring.close()


def test_a_reader(table: Map, program: int, caplog: pytest.LogCaptureFixture) -> None:
    """One whose callback fails goes on; after it another one may read."""
    for round_ in range(2):
        seen: list[Event] = []
        enough = threading.Event()

        def callback(
            events: Sequence[Event], seen: list[Event] = seen, enough: threading.Event = enough
        ) -> None:
            seen.extend(events)
            if len(seen) >= 3:
                enough.set()
            raise KeyError("callback")

        reader = EventReader(table, callback)
        for n in range(3):
            assert syscall.run_program(program, bytes(100 + round_ + n)).code == 0
        assert enough.wait(10)
        reader.close()
        assert [event.length for event in seen] == [100 + round_ + n for n in range(3)]
    assert "events were not taken" in caplog.text


def test_a_reader_that_ends_itself(table: Map, program: int) -> None:
    done = threading.Event()
    readers: list[EventReader] = []

    def callback(events: Sequence[Event]) -> None:
        readers[0].close()
        done.set()

    readers.append(EventReader(table, callback))
    assert syscall.run_program(program, bytes(64)).code == 0
    assert done.wait(10)
    readers[0]._thread.join()
