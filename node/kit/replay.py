"""Recordings run again, off line: what today's code, or another policy, would have done.

A recording is played on a `proxylib.testing.Host` with the facts of its connection.
By default the policy is the one that was in force then, so every difference is one
of the code; with documents given it is theirs, and the peers' identities are looked
up by their addresses anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.errors import UsageError
from proxylib.errors import PolicyError
from proxylib.hosts import HostMap, compile_hosts
from proxylib.ops import EntryType
from proxylib.policy import PolicyMap, compile_policies
from proxylib.recording import MAX_FILE, Facts, Logged, Recording, RecordingError, read_lines
from proxylib.registry import get_parser_factory
from proxylib.testing import Host, HostClosed
from proxylib.testing.dialogue import describe
from proxylib.testing.host import LogRecord
from xds.compilation import NETWORK_POLICY, NETWORK_POLICY_HOSTS
from xds.control import ControlServer


@dataclass(frozen=True, slots=True)
class Judges:
    """The policy of documents, and whose address is whose."""

    policy: PolicyMap
    hosts: HostMap

    def facts(self, facts: Facts) -> Facts:
        """`facts` with the identities that the addresses have here."""
        return replace(
            facts,
            src_id=self.hosts.identity(_ip(facts.src_addr)),
            dst_id=self.hosts.identity(_ip(facts.dst_addr)),
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a recording: log lines then and now, as dialogues have them."""

    then: tuple[str, ...]
    now: tuple[str, ...]
    to_server: bytes
    to_client: bytes
    closed: bool

    @property
    def differs(self) -> bool:
        return self.then != self.now

    def diff(self) -> list[str]:
        """Only what differs: ``-`` as it was recorded, ``+`` as it is now."""
        lines = difflib.unified_diff(self.then, self.now, lineterm="", n=0)
        return [line for line in lines if line[:2] not in ("--", "++", "@@")]


def read_recording(path: Path) -> Recording:
    """The recording in a file. Raises UsageError."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"{path} is larger than {MAX_FILE} bytes")
        with path.open(encoding="utf-8", errors="strict") as file:
            return read_lines(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a recording: it is not text") from None
    except RecordingError as error:
        raise UsageError(f"{path}: {error}") from None


def judges(policies: Sequence[Path], endpoints: Path | None, subjects: Iterable[str]) -> Judges:
    """What policy documents say about the addresses `subjects`, and others.

    Raises PolicyError with all that is wrong with them.
    """
    # Loaded as the control server loads them, without the server.
    extra = sorted(set(subjects) - {""})
    control = ControlServer(Path("unused"), policies, endpoints, extra_endpoints=extra)
    control.reload()
    resources = control.loaded.resources
    return Judges(
        compile_policies(resources[NETWORK_POLICY], get_parser_factory),
        compile_hosts(resources[NETWORK_POLICY_HOSTS], version="1"),
    )


def replay(recording: Recording, *, parser: str = "", judge: Judges | None = None) -> Replay:
    """Run `recording` under `parser` (its own, if empty) and the policy of `judge`.

    Raises UsageError if the recording has no policy and none is given.
    """
    host = open_host(recording, parser=parser, judge=judge)
    to_server, to_client = play(host, recording)
    return Replay(
        then=tuple(_line(entry) for entry in recording.log),
        now=tuple(describe(_plain(record)) for record in host.log),
        to_server=to_server,
        to_client=to_client,
        closed=host.closed,
    )


def open_host(recording: Recording, *, parser: str = "", judge: Judges | None = None) -> Host:
    """The recording's connection, as it begins; closed if nothing can be allowed on it."""
    policy, facts = judged_by(recording, judge)
    return connect(parser or facts.parser, policy, facts)


def judged_by(recording: Recording, judge: Judges | None) -> tuple[PolicyMap, Facts]:
    """The policy that is to judge a recording, and its facts under that policy."""
    if judge is None:
        return _recorded_policy(recording.facts), recording.facts
    return judge.policy, judge.facts(recording.facts)


def connect(parser: str, policy: PolicyMap, facts: Facts) -> Host:
    """A connection under `policy`; closed if nothing can be allowed on it."""
    host = Host(parser, policy=policy, facts=facts)
    decision = host.connection.decision
    if decision.denied:
        # As the filter does before a parser sees anything.
        host.connection.log_status(f"Connection closed: {decision.reason}")
        host.closed = True
    return host


def play(host: Host, recording: Recording) -> tuple[bytes, bytes]:
    """What reaches the server and the client when the recording's bytes arrive again."""
    sent = {False: b"", True: b""}
    for burst in recording.bursts:
        feed = host.server if burst.reply else host.client
        try:
            sent[burst.reply] += feed(burst.data, end=burst.end)
        except HostClosed:
            break
        sent[not burst.reply] += host.take(not burst.reply)
    return sent[False], sent[True]


def _recorded_policy(facts: Facts) -> PolicyMap:
    if not facts.policy:
        raise UsageError(
            "the recording has no policy (there was none in force, or it is of a capture): "
            "give one with --policy"
        )
    try:
        return compile_policies([facts.policy], get_parser_factory)
    except PolicyError as error:
        raise UsageError(f"the recording's policy cannot be used: {error}") from None


def _line(entry: Logged) -> str:
    return describe(_plain(LogRecord(EntryType[entry.entry_type], entry.proto, dict(entry.fields))))


def _plain(record: LogRecord) -> LogRecord:
    """With bytes and text alike, since a recording has only text."""
    fields = {key: _as_bytes(value) for key, value in record.fields.items()}
    return LogRecord(record.entry_type, record.proto, fields)


def _as_bytes(value: object) -> object:
    if isinstance(value, str):
        return value.encode("latin-1", "replace")
    if isinstance(value, (list, tuple)):
        return [_as_bytes(item) for item in value]
    return value


def _ip(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def totals(replays: Iterable[Replay]) -> dict[str, int]:
    """How many entries were and are of each type: ``{"Denied then": 3, "Denied now": 5}``."""
    counts: dict[str, int] = {}
    for run in replays:
        for when, lines in (("then", run.then), ("now", run.now)):
            for line in lines:
                key = f"{line.partition(' ')[0]} {when}"
                counts[key] = counts.get(key, 0) + 1
    return counts
