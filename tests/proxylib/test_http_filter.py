"""What the HTTP filter says of requests; the integration test has Envoy around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from proxylib import EntryType, HttpRule
from proxylib.http import REDACTED
from proxylib.http_filter import MAX_CONNECTIONS, HttpFilterConfig
from proxylib.instance import Instance, Parameters
from proxylib.policy import compile_policies
from proxylib.proto import npds_pb2 as npds
from proxylib.registry import get_parser_factory

SERVER, CLIENT = "10.0.0.1:80", "10.0.0.2:5000"


class Log:
    """An access log that keeps what it gets."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, dict[str, Any], str, int]] = []

    def stream(self, prefix: bytes, proto: str) -> Any:
        def write(kind: int, fields: Any, proto: str = "", latency: int = 0) -> None:
            self.entries.append((kind, dict(fields), proto, latency))

        return write

    def close(self) -> None:
        pass


class World:
    def __init__(self, *rules: Mapping[str, str]) -> None:
        self.log = Log()
        self.instance = Instance(Parameters(), self.log)
        self.config = HttpFilterConfig(self.instance, "http", True, "", "", lambda: None)
        self.allow(*rules)

    def allow(self, *rules: Mapping[str, str], port: int = 80) -> None:
        policy = npds.NetworkPolicy(endpoint_ips=["10.0.0.1"], endpoint_id=1)
        rule = policy.ingress_per_port_policies.add(port=port).rules.add(l7_proto="http")
        rule.http_rules.http_rules.extend(HttpRule(pairs).to_proto() for pairs in rules)
        resources = [policy.SerializeToString()]
        self.instance.policy = compile_policies(resources, get_parser_factory)

    def ask(
        self, method: str, path: str, *headers: tuple[bytes, bytes], local: str = SERVER
    ) -> Any:
        pseudo = ((b":authority", b"h"), (b":path", path.encode()), (b":method", method.encode()))
        return self.config.request((*pseudo, *headers), CLIENT, local, b"HTTP/2")


def test_passes_and_is_logged_with_its_response() -> None:
    world = World({"path": "/public"})
    exchange, status, remove, add, _ = world.ask("GET", "/public", (b"a", b"b"))
    assert (status, remove, add) == (0, (), ())
    exchange.complete(200, -1)
    (request, response) = world.log.entries
    assert request[0] == EntryType.Request
    assert request[1]["headers"] == ((b"a", b"b"),)
    assert request[2:] == ("http", 0)
    assert response[:3] == (
        EntryType.Response,
        {"protocol": b"HTTP/2", "method": b"GET", "host": b"h", "path": b"/public", "status": 200},
        "http",
    )
    assert response[3] > 0


def test_grpc_status_is_logged() -> None:
    world = World({})
    world.ask("POST", "/s/m")[0].complete(200, 7)
    assert world.log.entries[-1][1]["grpc_status"] == "7"


def test_denied() -> None:
    world = World({"path": "/public"})
    assert world.ask("GET", "/x") == (None, 403, (), (), b"Access denied\r\n")
    ((kind, fields, _, _),) = world.log.entries
    assert kind == EntryType.Denied
    assert fields["status"] == 403
    assert "reason" not in fields


@pytest.mark.parametrize("path", ["/public/../x", "//", "/a%2fb", "", "*", "/a//b", "/a%41"])
def test_a_path_that_is_not_normal_is_refused_whatever_the_rules(path: str) -> None:
    world = World({})
    assert world.ask("GET", path)[1] == 400
    fields = world.log.entries[0][1]
    assert (fields["status"], fields["reason"]) == (400, "the path is not in its normal form")


@pytest.mark.parametrize("host", [b"h,j", b"h j", b"h/x", b"h:x", b"[::1", b"a@b"])
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    config = World({}).config
    headers = ((b":path", b"/"), (b":method", b"GET"), (b":authority", host))
    assert config.request(headers, CLIENT, SERVER, b"HTTP/1.1")[1] == 400


def test_headers_that_look_like_framing_are_refused() -> None:
    world = World({})
    assert world.ask("GET", "/", (b"content_length", b"0"))[1] == 400
    assert world.ask("GET", "/", (b"x_y", b"0"))[1] == 0


def test_edits_go_to_envoy() -> None:
    world = World({"headerMatches": '{"name": "a", "value": "1", "mismatch": "REPLACE"}'})
    _, status, remove, add, _ = world.ask("GET", "/", (b"a", b"2"))
    assert (status, remove, add) == (0, (b"a",), ((b"a", b"1"),))


def test_no_policy_and_other_ports_fail_closed_with_the_reason() -> None:
    world = World({})
    assert world.ask("GET", "/", local="10.0.0.1:81")[1] == 403
    assert world.log.entries[-1][1]["reason"] == "no ingress policy for port 81"
    assert world.ask("GET", "/", local="10.0.0.9:80")[1] == 403
    assert "no policy" in world.log.entries[-1][1]["reason"]


def test_a_new_policy_is_in_force_for_the_next_request() -> None:
    world = World({"path": "/a"})
    assert world.ask("GET", "/b")[1] == 403
    world.allow({"path": "/b"})
    assert world.ask("GET", "/b")[1] == 0
    assert world.ask("GET", "/a")[1] == 403


def test_a_rule_that_raises_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Any:
        def match(request: object) -> bool:
            raise ZeroDivisionError("in a rule")

        return match

    monkeypatch.setattr(HttpRule, "compile", fails)
    world = World({"path": "/a"})
    assert world.ask("GET", "/a", (b"authorization", b"x"))[1] == 403
    ((kind, fields, _, _),) = world.log.entries
    assert kind == EntryType.Denied
    assert fields["reason"].startswith("Panic: ZeroDivisionError: in a rule")
    assert fields["headers"] == ((b"authorization", REDACTED),)


def test_connections_remembered_are_bounded() -> None:
    world = World({})
    for port in range(MAX_CONNECTIONS + 10):
        world.config.request(((b":path", b"/"),), f"10.0.0.2:{port + 1}", SERVER, b"HTTP/1.1")
    assert len(world.config._connections) <= MAX_CONNECTIONS


def test_an_address_that_is_none_is_an_error() -> None:
    with pytest.raises(Exception, match="no destination address"):
        World({}).ask("GET", "/", local="")
