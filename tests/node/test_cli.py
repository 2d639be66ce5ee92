"""The commands: what they print, and their exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from node.cli import cli
from node.envoy import SEARCH_PATH, find_envoy, find_library
from node.errors import NodeError, SetupError, UsageError
from proxylib.native import library_path
from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry
from tests.node.conftest import ROOT, Command

DEMOS = ROOT / "demos"
LISTEN = ("--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:9")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_help_names_every_command_and_imports_none() -> None:
    code = (
        "import sys; from node.cli import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'envoy_data_plane', 'pydantic', 'yaml'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for name in ("run", "accesslog", "parser", "policy", "lib-path"):
        assert f"  {name}" in done.stdout
    assert "HEAVY []" in done.stdout


def every_command(group: click.Group = cli, *above: str) -> Iterator[list[str]]:
    """The words of every command and group."""
    for name in group.list_commands(click.Context(group)):
        yield [*above, name]
        found = group.get_command(click.Context(group), name)
        if isinstance(found, click.Group):
            yield from every_command(found, *above, name)


@pytest.mark.parametrize("arguments", list(every_command()), ids=" ".join)
def test_every_command_has_help(arguments: list[str]) -> None:
    result = call(*arguments, "-h")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_every_kind_of_error_has_its_own_exit_status() -> None:
    assert NodeError.exit_status == 1
    assert UsageError.exit_status == 2
    assert SetupError.exit_status == 3


def test_lib_path() -> None:
    assert call("lib-path").output == f"{library_path()}\n"


def test_parser_list() -> None:
    parsers = {item["name"]: item for item in json.loads(call("parser", "list", "--json").stdout)}
    assert parsers["r2d2"]["error"] is None
    assert [rule["key"] for rule in parsers["r2d2"]["rules"]] == ["cmd", "file"]
    text = call("parser", "list").output
    assert "r2d2  The droid's protocol" in text
    assert "    file         regex" in text


def test_parser_list_leaves_out_what_is_for_tests_only() -> None:
    def names(*options: str) -> set[str]:
        return {
            item["name"] for item in json.loads(call("parser", "list", "--json", *options).stdout)
        }

    hidden = names("--all") - names()
    assert "test.passer" in hidden
    assert all(name.startswith("test.") for name in hidden)
    assert not any(name.startswith("test.") for name in names())


def test_a_parser_that_does_not_load_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.commands.parser_list.parser_names", lambda: ["r2d2", "gone"])
    result = call("parser", "list")
    assert result.exit_code == 1
    assert "gone  does not load: its entry point registers nothing named 'gone'" in result.output


def test_policy_validate_of_good_documents() -> None:
    result = call(
        "policy",
        "validate",
        DEMOS / "r2d2-policy.yaml",
        "--endpoints",
        DEMOS / "rebel-endpoints.yaml",
    )
    assert result.exit_code == 0, result.output
    assert result.output == "1 file: 0 errors, 0 warnings\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("  ingress:", "  ingress: [", 11, "not valid YAML"),
        ("toPorts:", "toPorst:", 14, "did you mean 'toPorts'"),
        ("l7proto: r2d2", "l7proto: r2d3", 19, "r2d3"),
        ("cmd: ", "cmmd: ", 21, "unknown key"),
        ('"HALT"', '"STOP"', 23, "must be one of"),
        ("^plans/.+$", "^plans/(", 22, "not a valid RE2 regex"),
    ],
)
def test_policy_validate_names_the_place(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    text = (DEMOS / "r2d2-policy.yaml").read_text()
    assert old in text
    path = tmp_path / "policy.yaml"
    path.write_text(text.replace(old, new, 1))
    result = call("policy", "validate", path, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["valid"] is False
    (problem, *_) = [item for item in report["errors"] if message in item["message"]]
    assert problem["file"] == str(path)
    assert problem["line"] == line
    shown = call("policy", "validate", path)
    assert shown.exit_code == 1
    assert f"error: {path}:{problem['line']}:" in shown.output


def test_policy_validate_of_missing_and_binary_files(tmp_path: Path) -> None:
    result = call("policy", "validate", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "none.yaml: No such file" in result.output
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    result = call("policy", "validate", binary)
    assert result.exit_code == 1
    assert "b.yaml:1:1: not UTF-8 text" in result.output


@pytest.mark.parametrize("text", ["", "# later\n", "---\n"])
def test_a_policy_file_without_a_document_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    result = call("policy", "validate", path)
    assert result.exit_code == 1
    assert f"error: {path}: holds no document" in result.output
    result = call("run", "r2d2", *LISTEN, "--policy", path)
    assert result.exit_code == 2
    assert f"proxylib: error: {path}: holds no document" in result.output


def test_a_folder_without_policies_is_an_error(tmp_path: Path) -> None:
    result = call("policy", "validate", tmp_path)
    assert result.exit_code == 1
    assert f"error: {tmp_path}: no file in it ends in .yaml" in result.output
    result = call("run", "r2d2", *LISTEN, "--policy", tmp_path, "--json")
    assert result.exit_code == 2
    stopped = json.loads(result.stdout.splitlines()[-1])
    assert (stopped["event"], stopped["exit_status"]) == ("stopped", 2)
    assert "no file in it ends in .yaml" in stopped["message"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["r2d2", "--listen", "127.0.0.1", "--upstream", "127.0.0.1:9"], 2, "no port"),
        (["r2d2", "--listen", "127.0.0.1:0", "--upstream", "::1:9"], 2, "brackets"),
        (["r2d2", "--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:0"], 2, "1 to 65535"),
        (["r2d2", "--listen", "127.0.0.1:0", "--upstream", "x.invalid:9"], 2, "no address"),
        (["r2d3", *LISTEN], 2, "did you mean 'r2d2'"),
        (["/none.py", *LISTEN], 2, "no such file"),
        (["r2d2", *LISTEN, "--envoy", "/none"], 3, "no Envoy at /none"),
        (["r2d2", *LISTEN, "--envoy", "/bin/echo"], 3, "is not an Envoy"),
        (["r2d2", *LISTEN, "--policy", "/none.yaml"], 2, "'/none.yaml' does not exist"),
        (["r2d2", *LISTEN, "--concurrency", "0"], 2, "0 is not in the range"),
        (["r2d2", "--listen", "192.0.2.1:80", "--upstream", "127.0.0.1:9"], 3, "no such address"),
    ],
)
def test_run_refuses_bad_input_before_it_starts_anything(
    arguments: list[str], status: int, message: str
) -> None:
    result = call("run", *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_run_refuses_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = call("run", "r2d2", "--listen", address, "--upstream", "127.0.0.1:9")
    assert result.exit_code == 3
    assert f"cannot listen on {address}: the port is in use" in result.output


def test_run_refuses_a_bad_policy_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text((DEMOS / "r2d2-policy.yaml").read_text().replace("cmd:", "cmmd:", 1))
    result = call("run", "r2d2", *LISTEN, "--policy", path)
    assert result.exit_code == 2
    assert f"proxylib: error: {path}:21:11: " in result.output
    assert "cmmd" in result.output


def test_run_refuses_a_parser_file_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "cli_broken.py"
    path.write_text("import math\n\nmath.no_such_thing()\n")
    result = call("run", path, *LISTEN)
    assert result.exit_code == 2
    assert f'File "{path}", line 3, in <module>' in result.output
    assert "math.no_such_thing()" in result.output
    assert "registry.py" not in result.output


def entry(number: int) -> bytes:
    return LogEntry(
        timestamp=number,
        entry_type=EntryType.Denied,
        generic_l7=L7LogEntry(proto="r2d2", fields={"cmd": "READ"}),
    ).SerializeToString()


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(30)
    while True:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        return client


def test_accesslog_prints_json_lines_until_the_last_client_goes(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    path = tmp_path / "log.sock"
    running = command("accesslog", path, "--no-follow")
    with connect(path) as client:
        for number in range(500):
            client.send(entry(number))
    assert running.process.wait(timeout=30) == 0
    items = [running.until(lambda item: True) for _ in range(500)]
    assert items[499]["time"] == "1970-01-01T00:00:00.000000499Z"
    assert {item["verdict"] for item in items} == {"denied"}
    assert running.lines.get(timeout=5) is None
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_accesslog_follows_until_it_is_told_to_end(
    command: Callable[..., Command], tmp_path: Path, number: int
) -> None:
    path = tmp_path / "log.sock"
    running = command("accesslog", path, "--json")
    for _ in range(2):
        with connect(path) as client:
            client.send(entry(1))
            running.until(lambda item: item["verdict"] == "denied")
    assert running.end(number) == 0
    assert "Traceback" not in running.stderr()
    assert not path.exists()


def test_accesslog_refuses_a_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()
        result = call("accesslog", path)
    assert result.exit_code == 2
    assert "another program is reading the access log here" in result.output


def test_accesslog_has_a_place_of_its_own(tmp_path: Path, command: Callable[..., Command]) -> None:
    running = command("accesslog", env={"XDG_RUNTIME_DIR": str(tmp_path)})
    path = tmp_path / "proxylib" / "access_log.sock"
    with connect(path) as client:
        client.send(entry(1))
        running.until(lambda item: item["verdict"] == "denied")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert running.end() == 0


def test_policy_schema_is_one_json_document() -> None:
    result = call("policy", "schema")
    assert result.exit_code == 0
    assert json.loads(result.output)["properties"]["kind"]["enum"][0] == "CiliumNetworkPolicy"


@pytest.mark.parametrize("name", ["r2d2", "memcache", "kafka"])
def test_a_generated_configuration_is_one_that_envoy_takes(name: str, tmp_path: Path) -> None:
    result = call("gen-config", name, "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    document = tmp_path / "envoy.yaml"
    document.write_text(result.output)
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", document],
        env={**os.environ, SEARCH_PATH: str(find_library().parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
