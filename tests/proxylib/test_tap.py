"""A tapped connection gives the same, and its recording has all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxylib import DROP, MORE, PASS, BatchParser, Parser, parser
from proxylib.parser import ClassFactory
from proxylib.recording import Closed, read_lines
from proxylib.registry import parser_names, replace_parser_factories
from proxylib.sandbox import OnError, Settings
from proxylib.tap import Recorder
from proxylib.testing import Host, HostClosed
from proxylib.testing.checks import hostile_dialogues

SAMPLES = [
    b"READ x\r\nWRITE y\r\n",
    b"get ok\r\nset k 0 0 3\r\nabc\r\n",
    b"\x04\x00\x00\x01\x05\x00\x00\x00\x00",
    b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\xff\xff",
]


def converse(host: Host, dialogue) -> tuple[bytes, bytes]:
    out = {False: b"", True: b""}
    try:
        for reply, data in dialogue:
            out[reply] += host.server(data) if reply else host.client(data)
            out[not reply] += host.take(not reply)
    except HostClosed:
        pass
    return out[False], out[True]


def tapped(name: str, folder: Path, **options) -> tuple[Host, Recorder]:
    host = Host(name)
    recorder = Recorder(folder, **options)
    recorder.tap(host.connection)
    return host, recorder


@pytest.mark.parametrize("name", parser_names())
def test_nothing_changes_by_recording(name: str, tmp_path: Path) -> None:
    for dialogue in hostile_dialogues(SAMPLES, 60, seed=1):
        plain = Host(name)
        host, _ = tapped(name, tmp_path)
        assert converse(host, dialogue) == converse(plain, dialogue)
        assert host.log == plain.log
        assert host.closed == plain.closed


class Ahead(BatchParser):
    """Passes 6 bytes and drops 4, again and again, whatever has come of them."""

    def on_batch(self, reply, end_stream, data, ops):
        at = 0
        while at < len(data):
            ops += (PASS, 6)
            at += 6
            if at < len(data):
                ops += (DROP, 4)
                at += 4
            elif at == len(data):
                ops += (MORE, 1)
                return
            else:
                return
        if not data:
            ops += (MORE, 1)


class RawAhead(Parser):
    """The same, one op at a time; says what comes next before it is there."""

    def __init__(self, connection):
        super().__init__(connection)
        self.drops = False

    def on_data(self, reply, end_stream, data):
        self.drops = not self.drops
        return (PASS, 6) if self.drops else (DROP, 4)


@pytest.mark.parametrize("cls", [Ahead, RawAhead])
@pytest.mark.parametrize("size", [1, 3, 6, 7, 10, 25])
def test_what_is_passed_ahead_is_recorded(
    cls: type[Parser], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxylib.registry._factories", {})
    parser("ahead")(cls)
    sent = bytes(range(97, 97 + 25))
    chunks = [(False, sent[i : i + size]) for i in range(0, len(sent), size)]
    plain = Host("ahead")
    host, _ = tapped("ahead", tmp_path)
    assert converse(host, chunks) == converse(plain, chunks)
    host.connection.close()
    (path,) = tmp_path.iterdir()
    recording = read_lines(path.read_text().splitlines())
    assert b"".join(burst.data for burst in recording.bursts) == sent


def test_a_recording_has_facts_bytes_verdicts_and_log(tmp_path: Path) -> None:
    host, _ = tapped("r2d2", tmp_path)
    host.client(b"READ a\r\nHA")
    host.client(b"LT\r\n", end=True)
    host.server(b"OK\r\n")
    host.connection.close()
    (path,) = tmp_path.iterdir()
    assert path.name == "000001-r2d2.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    recording = read_lines(path.read_text().splitlines())
    assert recording.facts.src_addr == "10.0.0.2:34567"
    assert recording.facts.policy
    assert [(b.reply, b.data, b.end) for b in recording.bursts] == [
        (False, b"READ a\r\nHA", False),
        (False, b"LT\r\n", False),
        (False, b"", True),
        (True, b"OK\r\n", False),
    ]
    assert [entry.fields["cmd"] for entry in recording.log] == ["READ", "HALT"]
    assert recording.happenings[-1] == Closed("gone")


def test_the_limit_ends_a_recording_and_not_the_connection(tmp_path: Path) -> None:
    host, recorder = tapped("r2d2", tmp_path, limit=1000)
    for _ in range(50):
        assert host.client(b"READ some-file\r\n") == b"READ some-file\r\n"
    (path,) = tmp_path.iterdir()
    recording = read_lines(path.read_text().splitlines())
    assert recording.happenings[-1] == Closed("limit")
    assert sum(len(burst.data) for burst in recording.bursts) < 1000
    assert recorder.used == 0


def test_so_many_connections_and_no_more(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, connections=2)
    for _ in range(5):
        host = Host("r2d2")
        recorder.tap(host.connection)
        host.client(b"HALT\r\n")
        host.connection.close()
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_numbers_go_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    for _ in range(2):
        host, _ = tapped("r2d2", tmp_path)
        host.connection.close()
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_secrets_are_made_unreadable_across_chunks(tmp_path: Path) -> None:
    host, _ = tapped("r2d2", tmp_path, patterns=[re.compile(rb"secret-\w+")])
    host.client(b"READ sec")
    host.client(b"ret-plan\r\n")
    host.connection.close()
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert "secret" not in text
    assert "plan" not in text
    recording = read_lines(text.splitlines())
    assert b"".join(burst.data for burst in recording.bursts) == b"READ xxxxxxxxxxx\r\n"
    assert recording.log[0].fields["file"] == "xxxxxxxxxxx"


def test_a_folder_that_is_gone_harms_nothing(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    host, _ = tapped("r2d2", folder)
    folder.rmdir()
    assert host.client(b"HALT\r\n") == b"HALT\r\n"
    host.connection.close()
    assert "cannot write the recording" in caplog.text


def test_two_that_record_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    hosts = [tapped("r2d2", tmp_path)[0] for _ in range(3)]
    for host in hosts:
        host.client(b"HALT\r\n")
        host.connection.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"00000{number}-r2d2.jsonl" for number in (1, 2, 3)
    ]


class Fails(BatchParser):
    version = 1

    def __init__(self, connection):
        super().__init__(connection)
        self.lines = 0

    def on_batch(self, reply, end_stream, data, ops):
        if data.startswith(b"!"):
            raise ValueError("bad")
        self.lines += 1
        self.connection.log(0, {"version": self.version, "lines": self.lines})
        ops += (PASS, len(data))

    def unparsable(self):
        return b"unparsable\n"


class RawFails(Parser):
    def on_data(self, reply, end_stream, data):
        if not data:
            return (MORE, 1)
        if data[0].startswith(b"!"):
            raise ValueError("bad")
        return (PASS, sum(map(len, data)))

    def unparsable(self):
        return b"unparsable\n"


@pytest.mark.parametrize("cls", [Fails, RawFails])
def test_a_stream_that_is_denied_gets_the_parsers_reply(cls: type[Parser], tmp_path: Path) -> None:
    host = Host("fails", factory=ClassFactory(cls), settings=Settings(OnError.DENY))
    Recorder(tmp_path).tap(host.connection)
    assert host.client(b"fine\n") == b"fine\n"
    assert host.client(b"!\n") == b""
    assert host.take(reply=True) == b"unparsable\n"
    host.connection.close()
    (path,) = tmp_path.iterdir()
    recording = read_lines(path.read_text().splitlines())
    assert recording.log[-1].fields["status"].startswith("Panic: ValueError: bad")


def test_a_recorded_connection_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(Fails):
        version = 2

        def migrate(self, old):
            assert type(old) is Fails
            self.lines = old.lines
            return True

    monkeypatch.setattr("proxylib.registry._factories", {})
    parser("fails")(Fails)
    host, _ = tapped("fails", tmp_path)
    host.client(b"one\n")
    replace_parser_factories({"fails": ClassFactory(Newer)})
    assert host.connection.refresh()
    host.client(b"two\n")
    assert [(r.fields["version"], r.fields["lines"]) for r in host.log] == [(1, 1), (2, 2)]
    host.connection.close()
    (path,) = tmp_path.iterdir()
    recording = read_lines(path.read_text().splitlines())
    assert b"".join(burst.data for burst in recording.bursts) == b"one\ntwo\n"
    assert [entry.fields["version"] for entry in recording.log] == [1, 2]


def test_what_was_recorded_of_a_parser_that_was_taken_away_is_kept(tmp_path: Path) -> None:
    host, recorder = tapped("r2d2", tmp_path)
    host.client(b"HALT\r\n")
    host.connection.dispossess()
    host.connection.close()
    (path,) = tmp_path.iterdir()
    recording = read_lines(path.read_text().splitlines())
    assert "bytes of memory" in recording.log[-1].fields["status"]
    assert recorder.used == 0
