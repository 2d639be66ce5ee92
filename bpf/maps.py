"""The maps of `schema.MAPS`: made and pinned by us, so that they are what programs expect.

Their folder's name has a hash of layouts and sizes, so another release's or another option's
maps are elsewhere; and a pin that is found is held against the schema all the same, because
neither the kernel nor bcc would say anything about a value of another size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bpf import schema, syscall
from bpf.errors import BpfError
from bpf.schema import MapSpec, MapType
from bpf.syscall import Map

CAN_BE_FULL = (MapType.HASH, MapType.PERCPU_HASH, MapType.LRU_HASH, MapType.LPM_TRIE)


class PinMismatch(BpfError):
    """A pinned map is not of the type or size that its name says."""


def folder(root: Path, sizes: Mapping[str, int]) -> Path:
    """Where the maps of these sizes are pinned."""
    return root / f"v{schema.VERSION}-{schema.fingerprint(sizes)}"


def folders(root: Path) -> list[Path]:
    """Every folder of pins under `root`, of whatever release."""
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and path.name[:1] == "v")
    except FileNotFoundError:
        return []


def same_layout(one: Path, other: Path) -> bool:
    """True for two folders whose maps differ in their sizes only."""
    return one.name.rpartition("-")[0] == other.name.rpartition("-")[0]


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raises `BpfError` for a map that there is not, or a size that it cannot have."""
    for name, size in sizes.items():
        if name not in schema.MAPS or name == "config":
            raise BpfError(f"there is no map {name!r} to give a size: {', '.join(schema.MAPS)}")
        if not 0 < size <= 1 << 30:
            raise BpfError(f"the map {name} cannot have {size} entries: 1 to {1 << 30}")
        if name == "events" and (size & (size - 1) or size < os.sysconf("SC_PAGESIZE")):
            raise BpfError(f"events: {size} bytes is not a power of two of at least a page")


def open_maps(
    where: Path, sizes: Mapping[str, int], specs: Mapping[str, MapSpec] = schema.MAPS
) -> dict[str, Map]:
    """Every map of `specs`, taken over from its pin or made and pinned.

    Raises `PinMismatch`, and `BpfError` if the kernel refuses to make one.
    """
    opened: dict[str, Map] = {}
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, spec in specs.items():
            opened[name] = _open(where / name, name, spec, sizes.get(name, spec.size))
    except OSError as error:
        close_maps(opened)
        raise BpfError(f"{where}: maps cannot be made: {error}") from error
    except BpfError:
        close_maps(opened)
        raise
    return opened


def read_maps(where: Path) -> dict[str, Map]:
    """Those maps that are pinned at `where`, whatever their number of entries.

    For readers beside an agent, or after it. Raises `PinMismatch`.
    """
    opened: dict[str, Map] = {}
    for name, spec in schema.MAPS.items():
        try:
            found = Map(syscall.get_pinned(where / name))
        except FileNotFoundError:
            continue
        except OSError as error:
            close_maps(opened)
            raise BpfError(f"{where / name} cannot be read: {error.strerror}") from error
        opened[name] = found
        try:
            _check(where / name, found, spec, found.info.max_entries)
        except PinMismatch:
            close_maps(opened)
            raise
    return opened


def close_maps(opened: Mapping[str, Map]) -> None:
    """Let go of all of them."""
    for found in opened.values():
        found.close()


def _open(path: Path, name: str, spec: MapSpec, size: int) -> Map:
    try:
        found = Map(syscall.get_pinned(path))
    except FileNotFoundError:
        pass
    else:
        try:
            _check(path, found, spec, size)
        except PinMismatch:
            found.close()
            raise
        return found
    fd = syscall.create_map(spec.type, spec.key.size, spec.value.size, size, spec.flags, name)
    made = Map(fd)
    try:
        syscall.pin(made.fd, path)
    except OSError:
        made.close()
        raise
    return made


def _check(path: Path, found: Map, spec: MapSpec, size: int) -> None:
    info = found.info
    has = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    wants = (spec.type, spec.key.size, spec.value.size, size, spec.flags)
    if has != wants:
        named = "(type, key size, value size, entries, flags)"
        raise PinMismatch(f"{path} is another map {named}: {has}, not {tuple(map(int, wants))}")


def pressure(opened: Mapping[str, Map], known: Mapping[str, int]) -> dict[str, float]:
    """How full the maps are that can be full. known: elements of maps that need no counting."""
    return {
        name: (known[name] if name in known else found.count()) / found.info.max_entries
        for name, found in opened.items()
        if schema.MAPS[name].type in CAN_BE_FULL
    }
