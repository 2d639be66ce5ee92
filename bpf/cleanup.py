"""Taking everything away that a data path left: filters, clsact, rules, routes, sysctls, pins.

Can be called at any time, and again: after a crash, in the middle of a start, when interfaces
or namespaces are gone. Needs no compiler and no maps, only what is in the kernel and the file
of what was there before.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator

from bpf import maps, places, routing
from bpf.checks import BPFFS_MAGIC, filesystem
from bpf.datapath import DatapathConfig, lock, read_config
from bpf.errors import BpfError
from bpf.memory import Memory
from bpf.netns import cookie, within
from bpf.schema import Config

log = logging.getLogger(__name__)


def check_namespace(config: DatapathConfig) -> None:
    """Raises `BpfError` if what there is to take away is another network namespace's.

    Its filters and rules can be reached from there only; and the pins and the record of what
    was before are what they need until then.
    """
    own = within(config.netns, cookie)
    others = {*_recorded(config), *_pinned(config)} - {own}
    if others:
        numbers = ", ".join(map(str, sorted(others)))
        raise BpfError(
            f"{config.root} and {config.memory} are of another network namespace (the kernel's "
            f"number {numbers}; this one is {own}), and nothing is taken away: do it there "
            "(nsenter --net=/run/netns/NAME ...). Only if that namespace is no more: --force "
            "takes the rest away, and forgets what kernel settings were there before"
        )


def _recorded(config: DatapathConfig) -> list[int]:
    found = Memory.load(config.memory).namespaces.items()
    return [n for n, at in found if at.path == config.netns and not at.sidecars]


def _pinned(config: DatapathConfig) -> Iterator[int]:
    for where in maps.folders(config.root):
        try:
            found = maps.read_maps(where)
        except BpfError:
            continue  # another release's: there is the record
        if "config" in found and (number := read_config(found, Config.NETNS)):
            yield number
        maps.close_maps(found)


def cleanup(config: DatapathConfig) -> list[str]:
    """What was taken away or put back, a line for each. Nothing is left, or `BpfError`.

    The agent that has it open must be ended before.
    """
    if filesystem(config.root) != BPFFS_MAGIC or not config.root.is_dir():
        return _leave_namespaces(config)
    held = lock(config.root)
    try:
        done = _leave_namespaces(config)
        for folder in maps.folders(config.root):
            shutil.rmtree(folder)
            done.append(f"pins in {folder}")
        _remove_root(config)
    finally:
        os.close(held)
    return done


def _leave_namespaces(config: DatapathConfig) -> list[str]:
    memory = Memory.load(config.memory)
    own = within(config.netns, cookie)
    recorded = own in memory.namespaces
    memory.namespace(own, config.netns)
    done = [
        line
        for number, namespace in list(memory.namespaces.items())
        for line in places.leave(memory, number, namespace.path)
    ]
    if done and not recorded:
        _tell_unknown(config)
    memory.forget()
    return done


def _tell_unknown(config: DatapathConfig) -> None:
    """Nobody knows any more what an agent has changed."""
    values = ", ".join(f"{name.replace('/', '.')} = {v}" for name, v in routing.NODE.items())
    log.warning(
        "%s is not there or cannot be used: kernel settings stay as they are, because what they "
        "were before is not known (an agent sets %s, and rp_filter and accept_local of endpoints' "
        "interfaces); in sidecars' namespaces and of Envoys nothing is found",
        config.memory,
        values,
    )


def _remove_root(config: DatapathConfig) -> None:
    """The folder of pins, unless it is the bpffs itself or has what is not ours."""
    if os.path.ismount(config.root):
        return
    try:
        config.root.rmdir()
    except OSError as error:
        raise BpfError(f"{config.root} has pins that are not ours: {error.strerror}") from error
