r"""Recordings: one connection's bytes, verdicts and log, as a file of JSON lines.

The first line is an object with ``proxylib-recording`` (the version of the format)
and the facts of the connection: what `Facts` has.  Then, in order of what happened:

==============================  ====================================================
``{"data": TEXT, "reply": B}``  bytes arrived, one character of TEXT for each
                                (Latin-1); reply: from the server
``{"end": true, "reply": B}``   that side's stream has ended
``{"op": NAME, "n": N, ...}``   the parser's verdict about the front of what is there
``{"log": TYPE, "fields": {}}`` it logged; bytes in fields are Latin-1 too
``{"closed": WHY}``             the connection is ``gone``, or the recording reached
                                its ``limit``
==============================  ====================================================

The policy that was in force is part of the facts, so a recording can be judged again
as it was, by today's code, and with another policy.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from proxylib.errors import ProxylibError

VERSION = 1

MAX_FILE = 256 << 20
"""Bytes of a recording that is read; files may come from strangers."""


class RecordingError(ProxylibError):
    """A file is not a recording, or not one that this version reads."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a connection is: as `proxylib.Connection` has it.

    policy: the serialized cilium.NetworkPolicy that applied when it began; empty for none.
    time: when, in seconds since the epoch.
    """

    parser: str
    ingress: bool = True
    src_id: int = 0
    dst_id: int = 0
    src_addr: str = ""
    dst_addr: str = ""
    policy_name: str = ""
    policy: bytes = b""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes that arrived, or (end) that no more will come."""

    reply: bool
    data: bytes = b""
    end: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """An op of the parser's."""

    reply: bool
    op: str
    n: int


@dataclass(frozen=True, slots=True)
class Logged:
    """An access-log entry of the parser's."""

    entry_type: str
    proto: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Closed:
    """The recording ends, and why."""

    why: str


Happening = Data | Verdict | Logged | Closed


@dataclass(frozen=True, slots=True)
class Recording:
    """One connection, from its beginning on."""

    facts: Facts
    happenings: tuple[Happening, ...]

    @property
    def log(self) -> list[Logged]:
        return [item for item in self.happenings if isinstance(item, Logged)]

    @property
    def bursts(self) -> list[Data]:
        return [item for item in self.happenings if isinstance(item, Data)]


def write_lines(recording: Recording) -> Iterator[str]:
    """The lines of a recording's file, without their ends."""
    facts = asdict(recording.facts)
    facts["policy"] = base64.b64encode(recording.facts.policy).decode()
    yield json.dumps({"proxylib-recording": VERSION, **facts})
    for item in recording.happenings:
        yield json.dumps(_to_json(item))


def read_lines(lines: Iterable[str]) -> Recording:
    """The recording that is written in `lines`. Raises RecordingError."""
    facts: Facts | None = None
    happenings: list[Happening] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if facts is None:
                facts = _facts(value)
            elif line.strip():
                happenings.append(_from_json(value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordingError(f"line {number} is not of a recording: {error!r:.200}") from None
    if facts is None:
        raise RecordingError("it is empty, and not a recording")
    return Recording(facts, tuple(happenings))


def redact(recording: Recording, patterns: Sequence[re.Pattern[bytes]]) -> Recording:
    """`recording` with all that `patterns` match in either direction made unreadable.

    Every byte of a match becomes ``x``, so that lengths still fit; a match may lie
    across chunks.  Text and bytes in log entries are redacted as well.
    """
    masked = {
        reply: _mask(b"".join(d.data for d in recording.bursts if d.reply == reply), patterns)
        for reply in (False, True)
    }
    taken = {False: 0, True: 0}
    happenings: list[Happening] = []
    for item in recording.happenings:
        if isinstance(item, Data):
            start = taken[item.reply]
            taken[item.reply] = end = start + len(item.data)
            item = Data(item.reply, masked[item.reply][start:end], item.end)
        elif isinstance(item, Logged):
            fields = {key: _mask_value(value, patterns) for key, value in item.fields.items()}
            item = Logged(item.entry_type, item.proto, fields)
        happenings.append(item)
    return Recording(recording.facts, tuple(happenings))


def _mask(data: bytes, patterns: Sequence[re.Pattern[bytes]]) -> bytes:
    for pattern in patterns:
        data = pattern.sub(lambda match: b"x" * len(match[0]), data)
    return data


def _mask_value(value: Any, patterns: Sequence[re.Pattern[bytes]]) -> Any:
    if isinstance(value, bytes):
        return _mask(value, patterns)
    if isinstance(value, str):
        return _mask(value.encode(), patterns).decode(errors="replace")
    if isinstance(value, (list, tuple)):
        return [_mask_value(item, patterns) for item in value]
    return value


def plain(value: Any) -> Any:
    """A field's value as a recording has it: bytes as Latin-1 text, several as a list."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _to_json(item: Happening) -> dict[str, Any]:
    match item:
        case Data(reply, _, True):
            return {"end": True, "reply": reply}
        case Data(reply, data):
            return {"data": data.decode("latin-1"), "reply": reply}
        case Verdict(reply, op, n):
            return {"op": op, "n": n, "reply": reply}
        case Logged(entry_type, proto, fields):
            return {"log": entry_type, "proto": proto, "fields": _plain_fields(fields)}
        case Closed(why):
            return {"closed": why}


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in fields.items()}


def _facts(value: dict[str, Any]) -> Facts:
    version = value.pop("proxylib-recording", None)
    if version != VERSION:
        raise ValueError(f"not a recording of version {VERSION}")
    return Facts(
        parser=_typed(value["parser"], str),
        ingress=_typed(value["ingress"], bool),
        src_id=_typed(value["src_id"], int),
        dst_id=_typed(value["dst_id"], int),
        src_addr=_typed(value["src_addr"], str),
        dst_addr=_typed(value["dst_addr"], str),
        policy_name=_typed(value["policy_name"], str),
        policy=base64.b64decode(_typed(value["policy"], str), validate=True),
        time=float(value["time"]),
    )


def _from_json(value: dict[str, Any]) -> Happening:
    if "data" in value:
        return Data(_typed(value["reply"], bool), _typed(value["data"], str).encode("latin-1"))
    if "end" in value:
        return Data(_typed(value["reply"], bool), end=True)
    if "op" in value:
        op, n = _typed(value["op"], str), _typed(value["n"], int)
        return Verdict(_typed(value["reply"], bool), op, n)
    if "log" in value:
        fields = _typed(value["fields"], dict)
        return Logged(_typed(value["log"], str), _typed(value["proto"], str), fields)
    return Closed(_typed(value["closed"], str))


def _typed(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise TypeError(f"{value!r:.80} is not {expected.__name__}")
    return value
