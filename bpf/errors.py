"""What goes wrong with the data path: each text says what, where, and what to do."""

from __future__ import annotations


class BpfError(Exception):
    """The data path cannot do what it was asked; what was in force before still is."""


class PolicyMapFull(BpfError):
    """A policy has more entries than fit: its endpoint is closed in both directions."""


class IpcacheFull(BpfError):
    """An address' identity does not fit into the map: the address counts as world."""


LOG_SHOWN = 16_000
"""Characters of a log's end in an error's text; a verifier's can be megabytes."""


class CompileError(BpfError):
    """A program does not compile or the kernel refuses it; `log` has all that either said."""

    def __init__(self, text: str, log: str) -> None:
        shown = log if len(log) <= LOG_SHOWN else f"…{log[-LOG_SHOWN:]}"
        super().__init__(f"{text}\n{shown}" if log else text)
        self.log = log
