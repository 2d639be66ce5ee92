from __future__ import annotations

from pathlib import Path

import pytest

from bpf import maps, schema, syscall
from bpf.errors import BpfError


def test_maps_are_taken_over(bpffs: Path) -> None:
    where = maps.folder(bpffs, {})
    first = maps.open_maps(where, {})
    first["links"].set(schema.U32.pack(3), schema.LINK.pack(1, 0, bytes(16), bytes(16)))
    maps.close_maps(first)
    second = maps.open_maps(where, {})
    assert second["links"].get(schema.U32.pack(3)) is not None
    assert maps.folders(bpffs) == [where]
    maps.close_maps(second)


def test_another_size_is_elsewhere(bpffs: Path) -> None:
    sizes = {"conntrack": 1024}
    assert maps.folder(bpffs, sizes) != maps.folder(bpffs, {})
    opened = maps.open_maps(maps.folder(bpffs, sizes), sizes)
    assert opened["conntrack"].info.max_entries == 1024
    maps.close_maps(opened)


def test_a_pin_of_another_size_is_noticed(bpffs: Path) -> None:
    """bcc's own pins would be taken, and give a program the wrong number of bytes."""
    where = maps.folder(bpffs, {})
    where.mkdir()
    wrong = syscall.Map(syscall.create_map(1, 4, 8, 16, 0, "endpoints"))
    syscall.pin(wrong.fd, where / "endpoints")
    wrong.close()
    for action in (lambda: maps.open_maps(where, {}), lambda: maps.read_maps(where)):
        with pytest.raises(maps.PinMismatch, match=r"endpoints is another map"):
            action()


def test_reading_what_is_there(bpffs: Path) -> None:
    sizes = {"policy": 100}
    where = maps.folder(bpffs, sizes)
    assert maps.read_maps(where) == {}
    maps.close_maps(maps.open_maps(where, sizes))
    read = maps.read_maps(where)
    assert read.keys() == schema.MAPS.keys()
    maps.close_maps(read)


def test_not_a_bpffs(tmp_path: Path, privileged: None) -> None:
    with pytest.raises(BpfError, match="maps cannot be made"):
        maps.open_maps(tmp_path / "v1", {})


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"nothing": 3}, "there is no map 'nothing'"),
        ({"policy": 0}, "cannot have 0 entries"),
        ({"events": 5000}, "not a power of two"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(BpfError, match=reason):
        maps.check_sizes(sizes)
    maps.check_sizes({"policy": 10, "events": 8192})
