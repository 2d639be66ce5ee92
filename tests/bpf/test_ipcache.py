from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf import syscall
from bpf.errors import BpfError, IpcacheFull
from bpf.ipcache import (
    UNRESOLVED,
    Ipcache,
    address_bytes,
    address_text,
    prefix_key,
    prefix_text,
)
from bpf.schema import MAPS, U32
from bpf.syscall import Map

ROOM = 4


def make(room: int = ROOM) -> Map:
    spec = MAPS["ipcache"]
    size = (spec.key.size, spec.value.size)
    return Map(syscall.create_map(spec.type, *size, room, spec.flags, "ipcache"))


@pytest.fixture
def table(privileged: None) -> Iterator[Map]:
    made = make()
    yield made
    made.close()


def answer(table: Map, address: str) -> int:
    found = table.get(prefix_key(address))
    assert found is not None
    return int(U32.unpack(found)[0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1", "fd00::1/128"),
        ("::/0", "::/0"),
        ("::ffff:1.2.3.4", "1.2.3.4/32"),
    ],
)
def test_prefixes(text: str, shown: str) -> None:
    assert prefix_text(prefix_key(text)) == shown


@pytest.mark.parametrize("text", ["10.0.0.0", "0.0.0.0", "fd00::1", ""])
def test_addresses(text: str) -> None:
    assert address_text(address_bytes(text)) == text


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.0/33", "fd00::/129", "name", "1.2.3.4\0"])
def test_text_that_is_no_prefix(text: str, table: Map) -> None:
    ipcache = Ipcache(table)
    ipcache.recover()
    with pytest.raises(BpfError, match="is not an IP prefix"):
        ipcache.change({"10.0.0.1": 5, text: 6})
    assert dict(ipcache.items()) == {"::/0": 2}
    if text:
        with pytest.raises(BpfError, match="is not an IP address"):
            address_bytes(text)


def test_the_longest_prefix_tells(table: Map) -> None:
    ipcache = Ipcache(table)
    ipcache.recover()
    assert ipcache.change({"10.0.0.0/8": 8, "10.1.0.0/16": 16, "fd00::/64": 64})
    assert not ipcache.change({"10.0.0.0/8": 8, "172.16.0.0/12": None})
    assert [answer(table, a) for a in ("10.1.0.1", "10.2.0.1", "11.0.0.1")] == [16, 8, 2]
    assert [answer(table, a) for a in ("fd00::5", "fd01::5")] == [64, 2]
    again = Ipcache(table)
    again.recover()
    assert dict(again.items()) == dict(ipcache.items())
    assert again.change({"10.1.0.0/16": None})
    assert answer(table, "10.1.0.1") == 8
    again.change({"::/0": None})
    assert answer(table, "11.0.0.1") == 2


def test_what_was_closed_is_told_again_after_a_take_over(table: Map) -> None:
    first = Ipcache(table)
    first.recover()
    with pytest.raises(IpcacheFull):
        first.change({"10.0.0.0/8": 8, "10.0.0.1": 1, "10.0.0.2": 2, "10.0.0.3": 3})
    assert answer(table, "10.0.0.3") == answer(table, "10.9.9.9") == UNRESOLVED
    second = Ipcache(table)
    second.recover()
    second.change({"10.0.0.2": None})
    assert answer(table, "10.9.9.9") == UNRESOLVED
    second.change({"10.0.0.3": 3})
    assert answer(table, "10.9.9.9") == UNRESOLVED
    second.change({"10.0.0.0/8": 8})
    assert answer(table, "10.9.9.9") == 8


NETWORKS = [
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.0.0.1",
    "10.0.0.2",
    "10.128.0.1",
    "::/0",
]
STEPS = st.lists(
    st.dictionaries(st.sampled_from(NETWORKS), st.one_of(st.none(), st.integers(3, 9))),
    max_size=8,
)


@given(STEPS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_nobody_is_taken_for_somebody_else(
    privileged: None, steps: list[dict[str, int | None]]
) -> None:
    """Whatever has room, an address is told by its own longest prefix, or is closed."""
    table, told = make(), {"::/0": 2}
    ipcache = Ipcache(table)
    ipcache.recover()
    for step in steps:
        with suppress(IpcacheFull):
            ipcache.change(step)
        for text, identity in step.items():
            if identity is not None:
                told[text] = identity
            elif text == "::/0":
                told[text] = 2
            else:
                told.pop(text, None)
        keys = {prefix_key(text): identity for text, identity in told.items()}
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.9", "10.128.0.1", "10.128.0.9", "9.9.9.9"):
            bits = int.from_bytes(address_bytes(address), "big")
            right = max(
                (
                    (int.from_bytes(key[:4], "little"), identity)
                    for key, identity in keys.items()
                    if not (bits ^ int.from_bytes(key[4:], "big"))
                    >> (128 - int.from_bytes(key[:4], "little"))
                ),
            )[1]
            assert answer(table, address) in ((right, UNRESOLVED) if len(keys) > ROOM else (right,))
    table.close()
