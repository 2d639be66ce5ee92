"""ControlServer from files to the library's own client, and back to its status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from proxylib.errors import ConfigError, ProxylibError
from proxylib.hosts import HostMap, compile_hosts
from proxylib.npds import (
    HOSTS_METHOD,
    HOSTS_TYPE,
    POLICY_METHOD,
    POLICY_TYPE,
    Client,
    Subscription,
)
from proxylib.policy import PolicyMap, compile_policies
from proxylib.registry import get_parser_factory
from tests.xds.client import Subscriber
from tests.xds.conftest import example
from xds.control import ControlServer
from xds.source import DocumentError, Problem

ENDPOINTS = """
endpoints:
- {address: 10.0.0.1, labels: {app: server}}
- {address: 10.0.0.2, labels: {app: client}}
"""
POLICY = """
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: 80, protocol: TCP}]
      rules: {l7proto: r2d2, l7: [{cmd: HALT}]}
"""
TWO_STREAMS = (POLICY_TYPE, HOSTS_TYPE)


class Library:
    """The library's side: its real client, and what it puts in force."""

    def __init__(self, path: Path) -> None:
        self.policy = PolicyMap()
        self.hosts = HostMap()
        self.client = Client(
            str(path),
            "library",
            [
                Subscription(POLICY_TYPE, POLICY_METHOD, self._policies),
                Subscription(HOSTS_TYPE, HOSTS_METHOD, self._hosts),
            ],
        )

    def _policies(self, version: str, resources: Sequence[bytes]) -> None:
        self.policy = compile_policies(resources, get_parser_factory, version=version)

    def _hosts(self, version: str, resources: Sequence[bytes]) -> None:
        self.hosts = compile_hosts(resources, version=version)

    def allows(self, cmd: bytes, client: str = "10.0.0.2", server: str = "10.0.0.1") -> bool:
        remote = self.hosts.identity(client)
        decision = self.policy.decide(server, ingress=True, port=80, remote=remote, parser="r2d2")
        return decision.matcher({"cmd": cmd, "file": b""})


@pytest.fixture
def files(short_path: Path) -> tuple[Path, Path]:
    policy, endpoints = short_path / "policy.yaml", short_path / "endpoints.yaml"
    policy.write_text(POLICY)
    endpoints.write_text(ENDPOINTS)
    return policy, endpoints


@pytest.fixture
def control(short_path: Path, files: tuple[Path, Path]) -> Iterator[ControlServer]:
    with ControlServer(short_path / "xds.sock", [files[0]], files[1]) as control:
        yield control


@pytest.fixture
def library(short_path: Path, control: ControlServer) -> Iterator[Library]:
    library = Library(short_path / "xds.sock")
    assert control.wait_acked(10)
    yield library
    library.client.close()


def eventually(check: Callable[[], bool], timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_rules_reach_the_library(library: Library, control: ControlServer) -> None:
    assert library.allows(b"HALT")
    assert not library.allows(b"RESET")
    assert not library.allows(b"HALT", client="192.0.2.1")
    assert library.allows(b"RESET", server="10.0.0.2"), "nothing selects the client"
    status = control.status()
    assert (status.revision, status.policies, status.endpoints) == (1, 1, 2)
    assert status.identities == {256: "unspec:app=client", 257: "unspec:app=server"}
    assert status.versions == {POLICY_TYPE: 1, HOSTS_TYPE: 1}
    assert {(s.node_id, s.type_url, s.acked_version) for s in status.streams} == {
        ("library", POLICY_TYPE, 1),
        ("library", HOSTS_TYPE, 1),
    }


def test_reload_changes_rules_under_the_library(
    library: Library, control: ControlServer, files: tuple[Path, Path]
) -> None:
    files[0].write_text(POLICY.replace("HALT", "RESET"))
    control.reload()
    assert control.wait_acked(10)
    assert (library.allows(b"HALT"), library.allows(b"RESET")) == (False, True)
    assert control.status().versions == {POLICY_TYPE: 2, HOSTS_TYPE: 1}
    control.reload()
    assert control.status().revision == 2, "nothing was new"


def test_bad_file_changes_nothing(
    library: Library, control: ControlServer, files: tuple[Path, Path]
) -> None:
    files[0].write_text(POLICY.replace("HALT", "HLAT"))
    files[1].write_text("endpoints: [{adress: 10.0.0.1}]")
    with pytest.raises(DocumentError) as caught:
        control.reload()
    errors = [str(problem) for problem in caught.value.problems]
    assert any(f"{files[0]}:10:" in error and "'HLAT': must be one of" in error for error in errors)
    assert any(f"{files[1]}:1:" in error and "'address'?" in error for error in errors)
    assert control.status().last_error == str(caught.value)
    assert control.status().revision == 1
    assert library.allows(b"HALT")
    files[0].write_text(POLICY)
    files[1].write_text(ENDPOINTS)
    control.reload()
    assert control.status().last_error == ""


def test_server_gone_and_back(
    library: Library, control: ControlServer, files: tuple[Path, Path]
) -> None:
    control.stop()
    assert library.allows(b"HALT"), "the last policy stays in force"
    files[0].write_text(POLICY.replace("HALT", "RESET"))
    control.start()
    assert control.wait_acked(20)
    assert (library.allows(b"HALT"), library.allows(b"RESET")) == (False, True)


def test_nack_is_shown_and_is_no_ack(control: ControlServer, short_path: Path) -> None:
    with Subscriber(short_path / "xds.sock", node="old") as client:
        response = client.subscribe()
        client.send(response.nonce, "", "unknown field")
        assert eventually(lambda: any(s.reason for s in control.status().streams))
        (stream,) = control.status().streams
        assert (stream.node_id, stream.nacked_version, stream.acked_version) == ("old", 1, 0)
        assert stream.reason == "unknown field"
        assert not control.wait_acked(0.1, streams=[POLICY_TYPE])


def test_wait_needs_the_streams_it_names(control: ControlServer, short_path: Path) -> None:
    assert not control.wait_acked(0.05)
    with Subscriber(short_path / "xds.sock") as client:
        client.ack(client.subscribe())
        assert control.wait_acked(5, streams=[POLICY_TYPE])
        assert not control.wait_acked(0.05, streams=TWO_STREAMS)


def test_wait_is_woken_by_the_ack(control: ControlServer, short_path: Path) -> None:
    with Subscriber(short_path / "xds.sock") as client:
        response = client.subscribe()
        timer = threading.Timer(0.2, client.ack, [response])
        timer.start()
        before = time.monotonic()
        assert control.wait_acked(10, streams=[POLICY_TYPE])
        assert 0.1 < time.monotonic() - before < 5
        timer.join()


def test_set_documents_and_back_to_files(library: Library, control: ControlServer) -> None:
    warnings = control.set_documents({"memory": example("allow-all-to-victim")}, ENDPOINTS)
    assert [str(warning.place) for warning in warnings] == ["memory:6:3: spec.endpointSelector"]
    assert control.wait_acked(10)
    assert library.allows(b"RESET")
    with pytest.raises(DocumentError, match="memory: larger than"):
        control.set_documents({"memory": "#" * (17 << 20)})
    assert library.allows(b"RESET")
    control.reload()
    assert control.wait_acked(10)
    assert not library.allows(b"RESET")


def test_without_policies_and_endpoints(short_path: Path) -> None:
    path = short_path / "s"
    with ControlServer(path, extra_endpoints=["127.0.0.1"]) as control:
        library = Library(path)
        try:
            assert control.wait_acked(10)
            assert library.allows(b"RESET", client="192.0.2.1", server="127.0.0.1")
            assert not library.allows(b"RESET", server="127.0.0.2")
        finally:
            library.client.close()
        assert [e.addresses for e in control.loaded.endpoints] == [("127.0.0.1",)]


def test_directory_of_policies(short_path: Path, files: tuple[Path, Path]) -> None:
    directory = short_path / "policies"
    directory.mkdir()
    (directory / "a.yaml").write_text(POLICY)
    (directory / "b.yml").write_text(POLICY.replace("name: p", "name: q"))
    for ignored in (".c.yaml", "d.yaml~", "README"):
        (directory / ignored).write_text("no policy")
    with ControlServer(short_path / "s", [directory], files[1]) as control:
        assert [policy.name for policy in control.loaded.policies] == ["p", "q"]


@pytest.mark.parametrize("text", ["", "\n", "# rules\n", "---\n", "---\n# none\n---\n", "~\n"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_file_without_a_document_is_no_policy_of_everything(
    library: Library, control: ControlServer, files: tuple[Path, Path], text: str, which: int
) -> None:
    files[which].write_text(text)
    with pytest.raises(DocumentError) as caught:
        control.reload()
    assert str(caught.value).startswith(f"{files[which]}: holds no document (it is empty, or")
    assert not library.allows(b"RESET")
    assert control.status().revision == 1
    with pytest.raises(DocumentError, match="holds no document"):
        ControlServer(files[0].parent / "s", [files[0]], files[1]).start()


def test_a_directory_without_a_policy_is_refused(short_path: Path) -> None:
    directory = short_path / "policies"
    directory.mkdir()
    (directory / "README").write_text("none yet")
    server = ControlServer(short_path / "s", [directory])
    with pytest.raises(DocumentError, match=r"policies: no file in it ends in \.yaml or \.yml"):
        server.start()
    (directory / "a.yaml").write_text(POLICY)
    (directory / "b.yaml").write_text("# to come\n")
    with pytest.raises(DocumentError, match=r"b\.yaml: holds no document"):
        server.start()


def test_start_refuses_what_is_wrong(short_path: Path, files: tuple[Path, Path]) -> None:
    socket = short_path / "s"
    missing = ControlServer(socket, [short_path / "none.yaml"], files[1])
    with pytest.raises(DocumentError, match=r"none\.yaml: No such file"):
        missing.start()
    assert not socket.exists()
    with pytest.raises(ConfigError, match="extra endpoint: 'localhost'"):
        ControlServer(socket, extra_endpoints=["localhost"]).start()


def test_identities_survive_with_a_state_file(short_path: Path, files: tuple[Path, Path]) -> None:
    state = short_path / "identities.json"

    def identities() -> dict[str, int]:
        server = ControlServer(short_path / "s", [], files[1], state_file=state)
        with server as control:
            return {labels: number for number, labels in control.status().identities.items()}

    before = identities()
    files[1].write_text(ENDPOINTS + "- {address: 10.0.0.3, labels: {app: archive}}\n")
    after = identities()
    assert after == {**before, "unspec:app=archive": 258}


def test_endpoint_ids_stay(control: ControlServer, files: tuple[Path, Path]) -> None:
    before = control.loaded.resources[POLICY_TYPE]
    files[1].write_text("endpoints:\n- {address: 10.0.0.9}\n" + ENDPOINTS.split("endpoints:\n")[1])
    control.reload()
    assert control.loaded.resources[POLICY_TYPE][:2] == before


class Watched:
    """Collects what the watcher reports."""

    def __init__(self) -> None:
        self.errors: list[ProxylibError] = []
        self.changes: list[Sequence[Problem]] = []


def test_watch_takes_up_edits_and_reports_bad_ones(
    short_path: Path, files: tuple[Path, Path]
) -> None:
    seen = Watched()
    control = ControlServer(
        short_path / "s",
        [files[0]],
        files[1],
        watch_files=True,
        on_error=seen.errors.append,
        on_change=seen.changes.append,
    )
    with control:
        # The watch is set up in its own time: edit until it has noticed one.
        def edited(text: str, done: Callable[[], bool]) -> bool:
            def attempt() -> bool:
                replacement = short_path / "replacement"
                replacement.write_text(text)
                replacement.rename(files[0])
                return eventually(done, 1)

            return eventually(attempt)

        assert edited(POLICY.replace("HALT", "RESET"), lambda: control.status().revision == 2)
        assert eventually(lambda: bool(seen.changes))
        assert edited("spec: [", lambda: bool(seen.errors))
        assert "not valid YAML" in str(seen.errors[0])
        assert edited("", lambda: "holds no document" in str(seen.errors[-1]))
        assert control.status().revision == 2
        before = time.monotonic()
    assert time.monotonic() - before < 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xds")]


def test_an_edit_before_the_watch_is_up_is_taken_up(
    short_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = threading.Event()

    def late(*arguments: Any, **options: Any) -> Iterator[Any]:
        assert edited.wait(10)
        yield from watchfiles.watch(*arguments, **options)

    monkeypatch.setattr("xds.control.watch", late)
    control = ControlServer(short_path / "xds.sock", [files[0]], files[1], watch_files=True)
    with control:
        files[0].write_text(POLICY.replace("HALT", "RESET"))
        edited.set()
        assert eventually(lambda: control.status().revision == 2)


def test_without_an_edit_the_files_are_read_once(
    short_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = threading.Event()

    def turns(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield set()
        yield set()
        turned.set()

    monkeypatch.setattr("xds.control.watch", turns)
    changes: list[object] = []
    with ControlServer(
        short_path / "xds.sock",
        [files[0]],
        files[1],
        watch_files=True,
        on_change=changes.append,
    ):
        assert turned.wait(10)
    assert not changes
