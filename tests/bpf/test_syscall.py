from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import syscall
from bpf.syscall import Map

HASH, PERCPU_HASH, LPM = 1, 5, 11
NO_PREALLOC = 1
EXIT_0 = bytes.fromhex("b700000000000000 9500000000000000")
READ_FAR = bytes.fromhex("6910ff7f00000000 9500000000000000")


@pytest.fixture(params=[HASH, LPM], ids=["hash", "lpm"])
def table(request: pytest.FixtureRequest, privileged: None) -> Iterator[Map]:
    """8 bytes of key, 4 of value, room for 10,000."""
    made = Map(syscall.create_map(request.param, 8, 4, 10_000, NO_PREALLOC, "test"))
    yield made
    made.close()


def key(n: int) -> bytes:
    return struct.pack("=I", 32) + struct.pack(">I", n)


def test_one_element(table: Map) -> None:
    assert table.get(key(1)) is None
    table.set(key(1), b"abcd")
    assert table.get(key(1)) == b"abcd"
    assert list(table.keys()) == [key(1)]
    assert table.delete(key(1))
    assert not table.delete(key(1))
    assert table.items() == []


def test_more_than_a_batch(table: Map) -> None:
    wanted = {key(n): struct.pack("=I", n) for n in range(2 * syscall.BATCH + 7)}
    table.set_many(wanted.items())
    assert dict(table.items()) == wanted
    assert table.count() == len(wanted)
    gone = [key(n) for n in range(0, len(wanted), 3)]
    table.delete(gone[5])
    table.delete_many([*gone, key(99_999)])
    assert {k for k, _ in table.items()} == wanted.keys() - set(gone)


def test_a_full_map_says_so(privileged: None) -> None:
    table = Map(syscall.create_map(LPM, 8, 4, 3, NO_PREALLOC, "test"))
    with pytest.raises(OSError) as caught:
        table.set_many((key(n), b"1234") for n in range(4))
    assert caught.value.errno == errno.ENOSPC
    assert table.count() == 3
    table.close()


def test_values_of_all_cpus(privileged: None) -> None:
    table = Map(syscall.create_map(PERCPU_HASH, 4, 12, 4, 0, "test"))
    cpus = syscall.possible_cpus()
    value = b"".join(bytes([cpu]) * 16 for cpu in range(cpus))
    table.set(b"1234", value)
    read = table.get(b"1234")
    assert read is not None
    assert len(read) == 16 * cpus
    assert [read[cpu * 16 : cpu * 16 + 12] for cpu in range(cpus)] == [
        bytes([cpu]) * 12 for cpu in range(cpus)
    ]
    table.close()


def test_a_pin_keeps_a_map(bpffs: Path) -> None:
    made = Map(syscall.create_map(HASH, 4, 4, 4, 0, "kept"))
    made.set(b"1234", b"abcd")
    syscall.pin(made.fd, bpffs / "kept")
    made.close()
    again = Map(syscall.get_pinned(bpffs / "kept"))
    assert again.get(b"1234") == b"abcd"
    assert (again.info.name, again.info.max_entries) == ("kept", 4)
    assert not os.get_inheritable(again.fd)
    again.close()
    with pytest.raises(FileNotFoundError):
        syscall.get_pinned(bpffs / "other")


def test_a_program(privileged: None) -> None:
    fd = syscall.load_program(3, EXIT_0, "nothing")
    info = syscall.program_info(fd)
    assert (info.type, info.name) == (3, "nothing")
    os.close(fd)


def test_the_verifier_is_heard(privileged: None) -> None:
    with pytest.raises(syscall.VerifierError) as caught:
        syscall.load_program(3, READ_FAR, "bad")
    assert "invalid bpf_context access" in caught.value.log
