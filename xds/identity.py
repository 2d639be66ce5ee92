"""Numeric identities: one 24-bit number for each set of labels.

A number is never given twice: while the server runs it is remembered, and with a
state file it outlives the server.  Without one, numbers go by the order of the
sorted label sets, so that the same endpoints get the same numbers again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from proxylib.errors import ConfigError
from xds.labels import RESERVED, Label, LabelSet, label_set

RESERVED_IDENTITIES = {
    "unknown": 0,
    "host": 1,
    "world": 2,
    "unmanaged": 3,
    "health": 4,
    "init": 5,
    "remote-node": 6,
}
"""Cilium's reserved numbers, by the key of their ``reserved:`` label."""

MIN_USER_IDENTITY = 256
MAX_IDENTITY = (1 << 24) - 1

_MAX_STATE = 64 << 20
"""Largest state file, bytes: some hundred thousand identities."""


def reserved_labels() -> dict[int, LabelSet]:
    """The label set of each reserved identity."""
    return {
        number: label_set([Label(name, source=RESERVED)])
        for name, number in RESERVED_IDENTITIES.items()
    }


class Identities:
    """Numbers for label sets.

    state: a file that remembers them across restarts; written by `save`.
    Raises ConfigError if the file is there and cannot be used.
    """

    def __init__(self, state: Path | None = None) -> None:
        self._state = state
        self._numbers: dict[str, int] = {} if state is None else _read_state(state)
        self._next = max(self._numbers.values(), default=MIN_USER_IDENTITY - 1) + 1
        self._saved = len(self._numbers)
        self._reserved = {labels: number for number, labels in reserved_labels().items()}

    def number(self, labels: LabelSet) -> int:
        """The identity of `labels`. Raises ConfigError when all numbers are taken."""
        if labels in self._reserved:
            return self._reserved[labels]
        key = str(labels)
        number = self._numbers.get(key)
        if number is None:
            if self._next > MAX_IDENTITY:
                raise ConfigError(f"no identity is left for the labels {key or '(none)'}")
            number = self._numbers[key] = self._next
            self._next += 1
        return number

    def number_all(self, sets: Iterable[LabelSet]) -> dict[int, LabelSet]:
        """The label set of each identity, new ones numbered in sorted order."""
        ordered = sorted(set(sets), key=lambda labels: labels.labels)
        return {self.number(labels): labels for labels in ordered}

    def save(self) -> None:
        """Write the state file, if there is one and something is new.

        The file is replaced in one step: whatever happens, it is the old or the
        new one. Raises ConfigError if it cannot be written.
        """
        if self._state is None or self._saved == len(self._numbers):
            return
        text = json.dumps({"identities": self._numbers}, indent=1, sort_keys=True)
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self._state.parent, prefix=f".{self._state.name}.", delete=False
            ) as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self._state)
        except OSError as error:
            raise ConfigError(f"{self._state}: cannot be written: {error.strerror}") from error
        self._saved = len(self._numbers)


def _read_state(path: Path) -> dict[str, int]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_STATE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if len(data) > _MAX_STATE:
            raise ValueError(f"larger than {_MAX_STATE} bytes")
        numbers = json.loads(data)["identities"]
        if not isinstance(numbers, dict) or len(set(numbers.values())) != len(numbers):
            raise ValueError("not one number for each set of labels")
        for number in numbers.values():
            if type(number) is not int or not MIN_USER_IDENTITY <= number <= MAX_IDENTITY:
                raise ValueError(f"{number!r} is not an identity")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not an identity state file ({error}); move it away to start afresh"
        ) from error
    return numbers
