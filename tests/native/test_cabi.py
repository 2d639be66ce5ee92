"""The C ABI of the built library, from a host without Python: modules, connections, ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxylib import FilterResult
from proxylib.native import library_path
from tests.native.chost import CHost, HostProcess, Rig
from tests.native.services import PolicyRefused, PolicyServer, network_policy, wait_for

Spawn = Callable[..., HostProcess]


@pytest.fixture
def spawn(host_program: Path, tmp_path: Path) -> Iterator[Spawn]:
    """Starts host processes of the test's own."""
    started: list[HostProcess] = []

    def start(**options: object) -> HostProcess:
        stderr = tmp_path / f"stderr{len(started)}"
        started.append(HostProcess(host_program, stderr, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for process in started:
        process.kill()


def connect(process: HostProcess, instance: int, number: int, **changes: object) -> FilterResult:
    arguments: dict[str, object] = {"parser": "r2d2", "policy_name": "10.0.0.1", **changes}
    return process.new_connection(instance, number, **arguments)  # type: ignore[arg-type]


def test_host_has_no_python(host_program: Path) -> None:
    linked = subprocess.run(["ldd", host_program], capture_output=True, text=True, check=True)
    assert "python" not in linked.stdout


def test_library_exports_only_its_faces() -> None:
    command = ["nm", "-D", "--defined-only", library_path()]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    abi = {"OpenModule", "CloseModule", "OnNewConnection", "OnData", "Close"}
    cffi = {"PyInit_libproxylib", "proxylib_start"}
    assert abi <= names
    ours = {"PyInit_proxylib_native"}
    known = abi | cffi | ours
    assert all(name.startswith("envoy_dynamic_module_") for name in names - known)


# Modules.


@pytest.mark.parametrize(
    "params",
    [
        pytest.param([("unknown", "x")], id="unknown"),
        pytest.param([("node-id", "a"), ("Node-Id", "a")], id="case matters"),
        pytest.param([("", "")], id="empty"),
        pytest.param([("access-log-path ", "x")], id="blank"),
        pytest.param([("\udcff".encode("utf-8", "surrogateescape").hex(), "x")], id="odd"),
    ],
)
def test_unknown_parameter_is_refused(spawn: Spawn, params: list[tuple[str, str]]) -> None:
    process = spawn()
    assert process.open_module(params) == 0
    assert process.open_module([("node-id", "a")]) != 0, "the library goes on"


def test_no_parameters(spawn: Spawn) -> None:
    process = spawn()
    instance = process.open_module([])
    assert instance != 0
    assert process.open_module([]) == instance


def test_last_duplicate_wins(spawn: Spawn) -> None:
    process = spawn()
    first = process.open_module([("node-id", "a"), ("node-id", "b")])
    assert process.open_module([("node-id", "b")]) == first
    assert process.open_module([("node-id", "a")]) != first


def test_same_parameters_are_the_same_instance_counted(spawn: Spawn) -> None:
    process = spawn()
    params = [("node-id", "counted")]
    instance = process.open_module(params)
    assert process.open_module(params) == instance
    process.close_module(instance)
    assert connect(process, instance, 1) == FilterResult.OK, "one reference is left"
    process.close_module(instance)
    assert connect(process, instance, 2) == FilterResult.INVALID_INSTANCE
    process.close_module(instance)
    assert process.open_module(params) != 0, "closing once too often harms nothing"


def test_order_of_parameters_does_not_matter(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn()
    params = [("node-id", "n"), ("access-log-path", str(tmp_path / "log"))]
    assert process.open_module(params) == process.open_module(params[::-1])


def test_empty_node_id_matches_any(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn()
    log = ("access-log-path", str(tmp_path / "log"))
    instance = process.open_module([log, ("node-id", "named")])
    assert process.open_module([log]) == instance
    assert process.open_module([log, ("node-id", "")]) == instance
    assert process.open_module([log, ("node-id", "other")]) != instance
    assert process.open_module([("node-id", "named")]) != instance, "another path"


def test_missing_sockets_are_no_error(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn()
    params = [("access-log-path", str(tmp_path / "no")), ("xds-path", str(tmp_path / "none"))]
    instance = process.open_module(params)
    assert connect(process, instance, 1) == FilterResult.OK
    event = process.io(1, False, False, b"READ x\r\n")
    assert event.out == (b"", b"ERROR\r\n"), "no policy: closed"


def test_silent_control_server_does_not_hold_the_host_up(spawn: Spawn, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "xds.sock"))
        silent.listen()
        process = spawn()
        started = time.monotonic()
        instance = process.open_module([("xds-path", str(tmp_path / "xds.sock"))])
        assert instance != 0
        assert time.monotonic() - started < 5
        assert connect(process, instance, 1) == FilterResult.OK
        assert process.io(1, False, False, b"HALT\r\n").out == (b"", b"ERROR\r\n")
        started = time.monotonic()
        process.close_module(instance)
        assert process.end() == 0
        assert time.monotonic() - started < 5


# Connections.


def test_checks_come_in_order(rig: Rig) -> None:
    process = rig.process
    wrong = {"parser": "nobody", "dst_addr": "nowhere"}
    assert connect(process, 99_999, 1 << 40, **wrong) == FilterResult.INVALID_INSTANCE
    assert connect(process, 0, 1 << 40, **wrong) == FilterResult.INVALID_INSTANCE
    assert connect(process, rig.instance, 1 << 40, **wrong) == FilterResult.UNKNOWN_PARSER
    assert connect(process, rig.instance, 1 << 40, dst_addr="nowhere") == (
        FilterResult.INVALID_ADDRESS
    )
    call = process.on_data(1 << 40, False, False, b"READ x\r\n")
    assert (call.result, call.ops) == (FilterResult.UNKNOWN_CONNECTION, ())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:80", FilterResult.OK),
        ("[fd00::1]:80", FilterResult.OK),
        ("[fd00::1%eth0]:80", FilterResult.OK),
        (":80", FilterResult.OK),
        ("10.0.0.1:65535", FilterResult.OK),
        ("10.0.0.1:0", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:-1", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:+1", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:1_0", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1: 80", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:٣", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1", FilterResult.INVALID_ADDRESS),
        ("fd00::1:80", FilterResult.INVALID_ADDRESS),
        ("[fd00::1:80", FilterResult.INVALID_ADDRESS),
        ("fd00::1]:80", FilterResult.INVALID_ADDRESS),
        ("[fd00::1]", FilterResult.INVALID_ADDRESS),
        ("", FilterResult.INVALID_ADDRESS),
        ("10.0.0.1:" + "9" * 5000, FilterResult.INVALID_ADDRESS),
    ],
)
def test_destination_address(rig: Rig, address: str, expected: FilterResult) -> None:
    number, _ = rig.endpoint()
    assert connect(rig.process, rig.instance, number, dst_addr=address) == expected
    rig.process.close(number)


@pytest.mark.parametrize("source", ["", "nonsense", "[::1]:1", "x" * 100_000])
def test_source_address_is_not_checked(rig: Rig, source: str) -> None:
    number, _ = rig.endpoint()
    assert connect(rig.process, rig.instance, number, src_addr=source) == FilterResult.OK
    rig.process.close(number)


@pytest.mark.parametrize("number", [0, 1 << 63, (1 << 64) - 1])
def test_any_connection_id_is_legal(rig: Rig, number: int) -> None:
    assert connect(rig.process, rig.instance, number) == FilterResult.OK
    assert rig.process.io(number, False, False, b"HALT\r\n").out == (b"", b"ERROR\r\n")
    rig.process.close(number)
    assert rig.process.on_data(number, False, False).result == FilterResult.UNKNOWN_CONNECTION


def test_reused_id_replaces(rig: Rig) -> None:
    number, endpoint = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, "r2d2", [{"cmd": "HALT"}]))
    assert connect(rig.process, rig.instance, number) == FilterResult.OK
    assert rig.process.io(number, False, False, b"HALT\r\n").out == (b"", b"ERROR\r\n")
    again = {"policy_name": endpoint, "dst_addr": f"{endpoint}:80"}
    assert connect(rig.process, rig.instance, number, **again) == FilterResult.OK
    assert rig.process.io(number, False, False, b"HALT\r\n").out == (b"HALT\r\n", b"")
    rig.process.close(number)
    rig.set_policy(endpoint, None)


def test_failed_open_keeps_the_old_connection(rig: Rig) -> None:
    number, _ = rig.endpoint()
    assert connect(rig.process, rig.instance, number) == FilterResult.OK
    for wrong in ({"parser": "nobody"}, {"dst_addr": "x"}):
        assert connect(rig.process, rig.instance, number, **wrong) != FilterResult.OK
    assert rig.process.io(number, False, False, b"HALT\r\n").out == (b"", b"ERROR\r\n")
    rig.process.close(number)


def test_close_twice_and_close_of_nothing(rig: Rig) -> None:
    number, _ = rig.endpoint()
    connect(rig.process, rig.instance, number)
    for _ in range(2):
        rig.process.close(number)
    rig.process.close(1 << 50)
    assert rig.process.on_data(number, False, False).result == FilterResult.UNKNOWN_CONNECTION


def test_connections_outlive_their_module(spawn: Spawn, tmp_path: Path) -> None:
    server = PolicyServer(tmp_path / "xds.sock")
    try:
        server.publish([network_policy("10.0.0.1", "r2d2", [{"cmd": "HALT"}])])
        process = spawn()
        instance = process.open_module([("xds-path", str(server.path))])
        assert connect(process, instance, 1) == FilterResult.OK
        assert process.io(1, False, False, b"HALT\r\n").out == (b"HALT\r\n", b"")
        process.close_module(instance)
        assert process.io(1, False, False, b"HALT\r\nRESET\r\n").out == (b"HALT\r\n", b"ERROR\r\n")
        assert connect(process, instance, 2) == FilterResult.INVALID_INSTANCE
        process.close(1)
    finally:
        server.close()


def test_two_modules_judge_by_their_own_policies(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn()
    servers = [PolicyServer(tmp_path / f"xds{i}.sock") for i in range(2)]
    try:
        for server, cmd in zip(servers, ("HALT", "RESET"), strict=True):
            server.publish([network_policy("10.0.0.1", "r2d2", [{"cmd": cmd}])])
        outputs = []
        for number, server in enumerate(servers):
            instance = process.open_module([("xds-path", str(server.path))])
            assert connect(process, instance, number) == FilterResult.OK
            outputs.append(process.io(number, False, False, b"HALT\r\nRESET\r\n").out[0])
        assert outputs == [b"HALT\r\n", b"RESET\r\n"]
    finally:
        for server in servers:
            server.close()


# Policy.


def test_refused_policy_leaves_the_old_one(rig: Rig) -> None:
    host = CHost(rig, "r2d2", [{"cmd": "HALT"}])
    with pytest.raises(PolicyRefused, match=r"cmd.*JUMP"):
        host.set_policy("r2d2", [{"cmd": "JUMP"}])
    assert host.client(b"HALT\r\nRESET\r\n") == b"HALT\r\n"
    host.close()


def test_policy_survives_its_server_and_a_new_one_is_found(spawn: Spawn, tmp_path: Path) -> None:
    path = tmp_path / "xds.sock"
    server = PolicyServer(path)
    server.publish([network_policy("10.0.0.1", "r2d2", [{"cmd": "HALT"}])])
    process = spawn()
    connect(process, process.open_module([("xds-path", str(path))]), 1)
    assert process.io(1, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
    server.close()
    assert process.io(1, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
    server = PolicyServer(path)
    try:
        server.publish([network_policy("10.0.0.1", "r2d2", [{"cmd": "RESET"}])])
        wait_for(lambda: process.io(1, False, False, b"RESET\r\n").out[0], "the new policy")
        assert server.requests[0].version_info == "", "a new stream knows no version"
        assert process.io(1, False, False, b"HALT\r\n").out[0] == b""
    finally:
        server.close()


# Threads, and ways to end.


def test_many_threads(rig: Rig) -> None:
    _, endpoint = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, "r2d2", [{"cmd": "HALT"}]))
    request = b"HALT\r\nRESET\r\n" * 20
    event = rig.process.threads(
        16, 50, rig.instance, 1 << 32, "r2d2", policy_name=endpoint, request=request
    )
    assert (event.error, event.out) == ("", (b"HALT\r\n" * 20, b"ERROR\r\n" * 20))
    rig.set_policy(endpoint, None)


def test_host_that_never_calls_close(spawn: Spawn) -> None:
    process = spawn()
    instance = process.open_module([])
    event = process.threads(
        4, 200, instance, 1, "r2d2", policy_name="10.0.0.1", request=b"HALT\r\n", leak=True
    )
    assert (event.error, event.out[1]) == ("", b"ERROR\r\n")
    process.close_module(instance)
    assert process.unload() == "ok"
    assert process.end() == 0


@pytest.mark.parametrize("how", ["return", "exit", "close", "unload"])
def test_host_ends_with_everything_open(
    spawn: Spawn, host_program: Path, tmp_path: Path, how: str
) -> None:
    server = PolicyServer(tmp_path / "xds.sock")
    try:
        server.publish([network_policy("10.0.0.1", "r2d2", None)])
        process = spawn()
        log = ("access-log-path", str(tmp_path / "log"))
        instance = process.open_module([("xds-path", str(server.path)), log])
        assert connect(process, instance, 1) == FilterResult.OK
        assert process.io(1, False, False, b"HALT\r\n").out[0] == b"HALT\r\n"
        if how == "close":
            process.close_module(instance)
        if how == "unload":
            assert process.unload() == "ok"
        assert process.exit(7) == 7 if how == "exit" else process.end() == 0
        assert process.stderr == ""
    finally:
        server.close()


def test_threads_are_not_left_waiting_after_unload(spawn: Spawn) -> None:
    process = spawn()
    process.threads(
        8,
        5,
        process.open_module([]),
        1,
        "r2d2",
        policy_name="",
        request=b"HALT\r\n",
    )
    assert process.unload() == "ok"
    assert process.end() == 0


# Where it is loaded.


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent"},
        {"PYTHONPATH": "{hijack}"},
        {"PYTHONSTARTUP": "{hijack}/json.py", "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1"},
        {"PYTHONPLATLIBDIR": "x", "VIRTUAL_ENV": "/x"},
        {"PYTHONEXECUTABLE": "/nonexistent"},
        {"__PYVENV_LAUNCHER__": "/nonexistent"},
        {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1", "PYTHONMALLOC": "debug"},
        {"LC_ALL": "C", "LANG": "nonsense", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        {"PATH": ""},
        {"HOME": "/nonexistent", "PYTHONUSERBASE": "{hijack}"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_environment_does_not_matter(
    spawn: Spawn, tmp_path: Path, variables: dict[str, str]
) -> None:
    hijack = tmp_path / "hijack"
    hijack.mkdir()
    for name in ("json", "encodings", "proxylib", "sitecustomize", "re2"):
        (hijack / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    env = {k: v.format(hijack=hijack) for k, v in variables.items()}
    process = spawn(env={**os.environ, **env}, cwd=hijack)
    instance = process.open_module([])
    assert connect(process, instance, 1) == FilterResult.OK, process.stderr
    assert process.io(1, False, False, b"HALT\r\n").out == (b"", b"ERROR\r\n")
    assert process.stderr == ""
    assert process.end() == 0


def test_no_environment_and_a_directory_that_is_gone(spawn: Spawn, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    process = spawn(env={}, cwd=gone)
    shutil.rmtree(gone)
    assert connect(process, process.open_module([]), 1) == FilterResult.OK, process.stderr
    assert process.end() == 0


def test_loaded_through_a_symbolic_link(spawn: Spawn, tmp_path: Path) -> None:
    link = tmp_path / "libl7.so"
    link.symlink_to(library_path())
    process = spawn(library=link)
    assert connect(process, process.open_module([]), 1) == FilterResult.OK, process.stderr
