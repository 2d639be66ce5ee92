"""Module instances: parameters, counting, and the checks of a new connection."""

from __future__ import annotations

import pytest

from proxylib import registry
from proxylib.errors import ConfigError
from proxylib.instance import InstanceTable, Parameters, destination_port, parse_parameters
from proxylib.parser import ParserFactory
from proxylib.proto import npds_pb2


class NoLog:
    def __init__(self, path: str) -> None:
        self.path = path
        self.closed = False

    def stream(self, prefix: bytes, proto: str):  # type: ignore[no-untyped-def]
        raise AssertionError("nothing is logged here")

    def close(self) -> None:
        self.closed = True


def test_parameters() -> None:
    assert parse_parameters([]) == Parameters()
    assert parse_parameters([("node-id", "a"), ("node-id", "b")]).node_id == "b"
    pairs = [("access-log-path", "l"), ("xds-path", "x"), ("node-id", "n")]
    assert parse_parameters(pairs) == Parameters("l", "x", "n")
    with pytest.raises(ConfigError, match=r"unknown parameter 'node_id' \(known: access-log-path"):
        parse_parameters([("node_id", "a")])


def test_instances_are_counted() -> None:
    logs: list[NoLog] = []

    def open_log(path: str) -> NoLog:
        logs.append(NoLog(path))
        return logs[-1]

    table = InstanceTable(open_log)
    first = table.open(Parameters("log", "", "a"))
    assert table.open(Parameters("log", "", "a")) == first
    assert table.open(Parameters("log", "", "")) == first
    other = table.open(Parameters("log", "", "b"))
    assert other not in (0, first)
    for _ in range(2):
        table.close(first)
        assert table.get(first) is not None
    table.close(first)
    assert table.get(first) is None
    assert [log.closed for log in logs] == [True, False]
    table.close(first)
    assert table.open(Parameters("log", "", "a")) != first, "numbers are not used again"


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("1.2.3.4:80", 80),
        ("[::1]:80", 80),
        ("host:1", 1),
        (":1", 1),
        ("1.2.3.4:0", None),
        ("1.2.3.4:", None),
        ("1.2.3.4", None),
        ("::1:80", None),
        ("[::1:80", None),
        ("::1]:80", None),
        ("[::1]x:80", None),
        ("[[::1]]:80", None),
        ("1.2.3.4:\uff18", None),
        ("1.2.3.4:8 ", None),
        ("1.2.3.4:65536", 65536),
        ("1.2.3.4:4294967296", None),
        ("", None),
    ],
)
def test_destination_port(address: str, port: int | None) -> None:
    assert destination_port(address) == port


def test_a_parser_loaded_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_factories", {})
    table = InstanceTable(NoLog)
    instance = table.get(table.open(Parameters()))
    assert instance is not None
    policy = npds_pb2.NetworkPolicy(endpoint_ips=["10.0.0.1"])
    policy.ingress_per_port_policies.add(port=80).rules.add(l7_proto="late")
    instance._set_policy("7", [policy.SerializeToString()])

    def reason() -> str:
        where = {"ingress": True, "port": 80, "remote": 1, "parser": "late"}
        return instance.policy.decide("10.0.0.1", **where).reason  # type: ignore[arg-type]

    assert reason() == "unknown parser 'late'"
    registry.register_parser_factory("late", ParserFactory())
    table.parsers_loaded()
    assert reason() == ""
    assert instance.policy.version == "7"
