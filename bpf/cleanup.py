"""Taking everything away that a data path left: filters, clsact, rules, routes, sysctls, pins.

Can be called at any time, and again: after a crash, in the middle of a start, when interfaces
or namespaces are gone. Needs no compiler and no maps, only what is in the kernel and the file
of what was there before.
"""

from __future__ import annotations

import os
import shutil

from bpf import maps, places
from bpf.checks import BPFFS_MAGIC, filesystem
from bpf.datapath import DatapathConfig, lock
from bpf.errors import BpfError
from bpf.memory import Memory
from bpf.netns import cookie, within


def cleanup(config: DatapathConfig) -> list[str]:
    """What was taken away or put back, a line for each. Nothing is left, or `BpfError`.

    The agent that has it open must be ended before.
    """
    if filesystem(config.root) != BPFFS_MAGIC:
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
    memory.namespace(own, config.netns)
    done = [
        line
        for number, namespace in list(memory.namespaces.items())
        for line in places.leave(memory, number, namespace.path)
    ]
    memory.forget()
    return done


def _remove_root(config: DatapathConfig) -> None:
    """The folder of pins, unless it is the bpffs itself or has what is not ours."""
    if os.path.ismount(config.root):
        return
    try:
        config.root.rmdir()
    except OSError as error:
        raise BpfError(f"{config.root} has pins that are not ours: {error.strerror}") from error
