"""What goes wrong with the data path: each text says what, where, and what to do."""

from __future__ import annotations


class BpfError(Exception):
    """The data path cannot do what it was asked; what was in force before still is."""


class PolicyMapFull(BpfError):
    """A policy has more entries than fit: its endpoint is closed in both directions."""


class IpcacheFull(BpfError):
    """An address' identity does not fit into the map: the address counts as world."""


class CompileError(BpfError):
    """A program does not compile or the kernel refuses it; `log` has what either said."""

    def __init__(self, text: str, log: str) -> None:
        super().__init__(f"{text}\n{log}" if log else text)
        self.log = log
