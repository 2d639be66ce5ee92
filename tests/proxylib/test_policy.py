"""Policy: what is refused as a whole, and what a compiled map decides."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from proxylib import Message
from proxylib.errors import PolicyError, RegistrationError
from proxylib.parser import ParserFactory
from proxylib.policy import Decision, PolicyMap, compile_policies
from proxylib.proto import npds_pb2 as npds
from proxylib.registry import get_parser_factory
from proxylib.rules import never

IP = 'endpoint_ips: "10.0.0.1" endpoint_id: 7 '


def resource(text: str) -> bytes:
    return text_format.Parse(text, npds.NetworkPolicy()).SerializeToString()


def compiled(*ports: str) -> PolicyMap:
    entries = "".join(f"ingress_per_port_policies {{ {port} }} " for port in ports)
    return compile_policies([resource(IP + entries)], get_parser_factory)


def allows(
    policy: PolicyMap, *, port: int = 80, remote: int = 100, cmd: str = "HALT", parser: str = "r2d2"
) -> bool:
    decision = policy.decide("10.0.0.1", ingress=True, port=port, remote=remote, parser=parser)
    return decision.matcher(Message(cmd=cmd, file=b"x"))


def r2d2(*commands: str, more: str = "", deny: str = "") -> str:
    rules = "".join(f'l7_allow_rules {{ rule {{ key: "cmd" value: "{c}" }} }} ' for c in commands)
    if deny:
        rules += f'l7_deny_rules {{ rule {{ key: "cmd" value: "{deny}" }} }} '
    return f'rules {{ l7_proto: "r2d2" {more} l7_rules {{ {rules} }} }} '


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "endpoint_ips must be one or two"),
        ('endpoint_ips: ""', "endpoint_ips must be one or two"),
        ('endpoint_ips: "a" endpoint_ips: "b" endpoint_ips: "c"', "endpoint_ips must be"),
        (IP + "ingress_per_port_policies { port: 65536 }", r"endpoint 7 .*ingress port 65536"),
        (IP + "egress_per_port_policies { port: 1 end_port: 65536 }", "egress port 1-65536"),
        (IP + "egress_per_port_policies { port: 9 end_port: 8 }", "ends before it starts"),
        (IP + "ingress_per_port_policies { port: 1 } " * 1
         + "ingress_per_port_policies { port: 1 }", "port 1: duplicate port"),
        (IP + "ingress_per_port_policies { port: 80 " + r2d2("JUMP") + "}",
         r"endpoint 7 \(10.0.0.1\): ingress port 80: r2d2 l7_allow_rules\[0\]: cmd: 'JUMP'"),
        (IP + "ingress_per_port_policies { port: 80 " + r2d2(deny="JUMP") + "}",
         r"r2d2 l7_deny_rules\[0\]: cmd: 'JUMP'"),
        (IP + 'ingress_per_port_policies { rules { l7_rules { l7_allow_rules { } } } }',
         "without an l7_proto"),
        (IP + 'ingress_per_port_policies { rules { l7_proto: "r2d2" '
         'l7_rules { l7_allow_rules { metadata_rule: "x" } } } }', "metadata_rule"),
    ],
)  # fmt: skip
def test_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        compile_policies([resource(text)], get_parser_factory)


def test_undecodable_resource() -> None:
    with pytest.raises(PolicyError, match=r"not a cilium\.NetworkPolicy"):
        compile_policies([b"\xff\xff\xff"], get_parser_factory)


def test_one_address_two_policies() -> None:
    with pytest.raises(PolicyError, match=r"10\.0\.0\.1 has a policy already"):
        compile_policies([resource(IP), resource(IP)], get_parser_factory)


def test_both_addresses_of_an_endpoint() -> None:
    policy = compile_policies(
        [resource('endpoint_ips: "10.0.0.1" endpoint_ips: "fd00::1" '
                  "ingress_per_port_policies { port: 80 }")], get_parser_factory,
    )  # fmt: skip
    for name in ("10.0.0.1", "fd00::1"):
        decision = policy.decide(name, ingress=True, port=80, remote=1, parser="r2d2")
        assert not decision.denied


@pytest.mark.parametrize(
    ("policy", "where", "reason"),
    [
        (PolicyMap(), {}, "no policy for endpoint 10.0.0.1"),
        (compiled(), {}, "no ingress policy for port 80"),
        (compiled("port: 80"), {"ingress": False}, "no egress policy for port 80"),
        (compiled("port: 80"), {"port": 81}, "no ingress policy for port 81"),
        (compiled("port: 80 rules { remote_policies: 5 }"), {},
         "identity 100 is not allowed on ingress port 80"),
        (compiled("port: 80 rules { deny: true }"), {}, "100 is denied on ingress port 80"),
        (compiled('port: 80 rules { l7_proto: "nobody" }'), {}, "unknown parser 'nobody'"),
        (compiled("port: 80 protocol: UDP"), {}, "no ingress policy for port 80"),
        (compiled("port: 80 rules { http_rules { } }"), {}, "for parser http"),
    ],
)  # fmt: skip
def test_closed_with_the_reason(policy: PolicyMap, where: dict[str, object], reason: str) -> None:
    arguments = {"ingress": True, "port": 80, "remote": 100, "parser": "r2d2", **where}
    decision = policy.decide("10.0.0.1", **arguments)  # type: ignore[arg-type]
    assert decision.denied
    assert reason in decision.reason
    assert not decision.matcher(Message(cmd=b"HALT", file=b""))


@pytest.mark.parametrize(
    ("ports", "allowed", "denied"),
    [
        pytest.param(["port: 80"], [{}], [{"port": 81}], id="no rules allow all"),
        pytest.param(["port: 80 rules { }"], [{}], [], id="rule without anything"),
        pytest.param(["port: 0"], [{"port": 1}, {"port": 65535}], [], id="port 0 is any port"),
        pytest.param(
            ["port: 80 end_port: 90"], [{"port": 80}, {"port": 85}, {"port": 90}],
            [{"port": 79}, {"port": 91}], id="range",
        ),
        pytest.param(
            ["port: 80 rules { remote_policies: 1 remote_policies: 2 }"],
            [{"remote": 1}, {"remote": 2}], [{"remote": 3}, {"remote": 0}], id="remotes",
        ),
        pytest.param(
            ["port: 80 rules { } rules { deny: true remote_policies: 5 }"],
            [{"remote": 1}], [{"remote": 5}], id="deny beats allow",
        ),
        pytest.param(
            ["port: 80 " + r2d2("HALT")], [{}], [{"cmd": "RESET"}, {"parser": "other"}], id="L7"
        ),
        pytest.param(
            ["port: 80 " + r2d2()], [{"cmd": "RESET"}], [{"parser": "other"}], id="no L7 rules"
        ),
        pytest.param(
            ["port: 80 " + r2d2("HALT") + r2d2("READ", more="remote_policies: 5")],
            [{}, {"remote": 5, "cmd": "READ"}], [{"cmd": "READ"}], id="rules add up",
        ),
        pytest.param(
            ["port: 80 " + r2d2("HALT") + "rules { remote_policies: 5 }"],
            [{"remote": 5, "cmd": "RESET"}], [{"cmd": "RESET"}], id="L3 allow needs no L7",
        ),
        pytest.param(
            ["port: 80 " + r2d2("HALT", "RESET", deny="RESET")], [{}], [{"cmd": "RESET"}],
            id="L7 deny",
        ),
        pytest.param(
            ["port: 80 " + r2d2(deny="RESET")], [{}], [{"cmd": "RESET"}], id="L7 deny alone"
        ),
        pytest.param(
            ["port: 80 " + r2d2("HALT"), "port: 0 " + r2d2("READ")],
            [{}, {"cmd": "READ"}, {"cmd": "READ", "port": 9}], [{"port": 9}, {"cmd": "RESET"}],
            id="port 0 rescues an exact port",
        ),
        pytest.param(
            ['port: 80 rules { l7_proto: "nobody" remote_policies: 5 } rules { }'],
            [], [{}, {"remote": 5}], id="unknown parser closes the port for all",
        ),
        pytest.param(
            ["port: 80 rules { precedence: 2 deny: true remote_policies: 5 } rules { }"],
            [{}], [{"remote": 5}], id="higher precedence denies",
        ),
        pytest.param(
            ["port: 80 rules { precedence: 2 remote_policies: 5 } rules { deny: true }"],
            [{"remote": 5}], [{}], id="higher precedence allows",
        ),
        pytest.param(
            ["port: 80 rules { precedence: 9 pass_precedence: 1 remote_policies: 5 } "
             "rules { precedence: 5 deny: true } rules { precedence: 1 }"],
            [{"remote": 5}], [{}], id="pass skips tiers",
        ),
    ],
)  # fmt: skip
def test_decisions(
    ports: list[str], allowed: list[dict[str, object]], denied: list[dict[str, object]]
) -> None:
    policy = compiled(*ports)
    assert [allows(policy, **case) for case in allowed] == [True] * len(allowed)  # type: ignore[arg-type]
    assert [allows(policy, **case) for case in denied] == [False] * len(denied)  # type: ignore[arg-type]


def test_mixed_parsers_on_one_port() -> None:
    factory = get_parser_factory("r2d2")
    text = IP + "ingress_per_port_policies { port: 80 " + r2d2("HALT")
    text += 'rules { l7_proto: "other" l7_rules { } } }'
    with pytest.raises(PolicyError, match="port 80: mixed L7 types: other, r2d2"):
        compile_policies([resource(text)], lambda name: factory)


def test_remote_is_the_peer_of_the_direction() -> None:
    text = IP + "egress_per_port_policies { port: 80 rules { remote_policies: 5 } }"
    policy = compile_policies([resource(text)], get_parser_factory)
    where = {"ingress": False, "port": 80, "parser": "r2d2"}
    assert not policy.decide("10.0.0.1", remote=5, **where).denied  # type: ignore[arg-type]
    assert policy.decide("10.0.0.1", remote=6, **where).denied  # type: ignore[arg-type]


def test_next_version_reuses_what_did_not_change() -> None:
    same = resource(IP + "ingress_per_port_policies { port: 80 " + r2d2("HALT") + "}")
    old = compile_policies([same], get_parser_factory, version="1")
    other = resource('endpoint_ips: "10.0.0.2"')
    new = compile_policies([same, other], get_parser_factory, version="2", previous=old)
    assert (old.version, new.version) == ("1", "2")
    assert new.endpoints["10.0.0.1"] is old.endpoints["10.0.0.1"]
    assert set(new.endpoints) == {"10.0.0.1", "10.0.0.2"}


def test_decision_is_one_look_up_the_second_time() -> None:
    policy = compiled("port: 80 " + r2d2("HALT"))
    where = {"ingress": True, "port": 80, "remote": 1, "parser": "r2d2"}
    first = policy.decide("10.0.0.1", **where)  # type: ignore[arg-type]
    assert policy.decide("10.0.0.1", **where) is first  # type: ignore[arg-type]


def test_decision_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylib.policy._MAX_DECISIONS", 10)
    policy = compiled("port: 80 rules { remote_policies: 3 }")
    for remote in range(100):
        assert allows(policy, remote=remote) is (remote == 3)
    assert len(policy.endpoints["10.0.0.1"]._decisions) <= 10


def kafka(rules: str) -> PolicyMap:
    return compiled(f"port: 80 rules {{ kafka_rules {{ {rules} }} }}")


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        pytest.param("kafka_rules { }", [(0, 0, "a"), (1, 9, "b")], id="empty: everything"),
        pytest.param("", [(0, 0, "a"), (1, 9, "b")], id="none: everything"),
        pytest.param("kafka_rules { api_version: -1 api_keys: 1 }", [(1, 9, "b")], id="key"),
        pytest.param("kafka_rules { api_keys: 0 api_keys: 1 }", [(0, 0, "a")], id="version 0"),
        pytest.param('kafka_rules { api_version: -1 topic: "b" }', [(1, 9, "b")], id="topic"),
        pytest.param('kafka_rules { api_version: 9 client_id: "me" }', [(1, 9, "b")], id="client"),
        pytest.param('kafka_rules { api_version: 9 client_id: "you" }', [], id="other client"),
    ],
)
def test_kafka_rules_of_the_wire(rules: str, allowed: list[tuple[int, int, str]]) -> None:
    decision = kafka(rules).decide("10.0.0.1", ingress=True, port=80, remote=1, parser="kafka")
    requests = [(0, 0, "a"), (1, 9, "b")]
    assert [
        (key, version, topic)
        for key, version, topic in requests
        if decision.matcher(
            Message(api_key=key, api_version=version, client_id=b"me", topics=topic.encode())
        )
    ] == allowed


@pytest.mark.parametrize("rule", ["api_keys: 9999", 'topic: "a b"', "api_version: 40000"])
def test_kafka_rules_refused(rule: str) -> None:
    with pytest.raises(PolicyError, match=r"ingress port 80: kafka_rules\[1\]: "):
        kafka(f"kafka_rules {{ }} kafka_rules {{ {rule} }}")


def test_a_parser_that_comes_later_opens_what_was_closed_for_want_of_it() -> None:
    text = IP + 'ingress_per_port_policies { port: 80 rules { l7_proto: "r2d2" } }'
    old = compile_policies([resource(text)], lambda name: None)
    assert not allows(old)
    assert allows(compile_policies([resource(text)], get_parser_factory, previous=old))


def test_a_parser_that_does_not_load_closes_only_its_own_port() -> None:
    def find(name: str) -> ParserFactory | None:
        raise RegistrationError(f"{name}: ImportError: no such module")

    broken = IP + 'ingress_per_port_policies { port: 80 rules { l7_proto: "broken" } }'
    fine = 'endpoint_ips: "10.0.0.2" ingress_per_port_policies { port: 80 }'
    policy = compile_policies([resource(broken), resource(fine)], find)
    where = {"ingress": True, "port": 80, "remote": 1, "parser": "broken"}
    decision = policy.decide("10.0.0.1", **where)  # type: ignore[arg-type]
    assert decision.reason == "broken: ImportError: no such module"
    assert not policy.decide("10.0.0.2", **where).denied  # type: ignore[arg-type]


AUDIT = """
ingress_per_port_policies { port: 80 rules { l7_proto: "r2d2" } }
ingress_per_port_policies { port: 81 rules { remote_policies: 5 } }
audit { ingress_per_port_policies { port: 80 %s } }
"""


def test_audit_mode_tells_what_would_be_denied() -> None:
    text = IP + AUDIT % r2d2("HALT")
    policy = compile_policies([resource(text)], get_parser_factory)

    def decide(port: int, remote: int = 1) -> Decision:
        return policy.decide("10.0.0.1", ingress=True, port=port, remote=remote, parser="r2d2")

    judged = decide(80)
    assert judged.would is not None
    for cmd in (b"HALT", b"RESET"):
        assert judged.matcher({"cmd": cmd, "file": b""}), "all of it passes"
        assert judged.would({"cmd": cmd, "file": b""}) is (cmd == b"HALT")
    assert decide(81, remote=5).would is never, "nothing would open the port"
    denied = decide(81)
    assert denied.denied
    assert denied.would is None, "what is denied in any case is no news"


def test_what_waits_for_a_parser_in_audit_mode_is_compiled_again() -> None:
    rule = 'rules { l7_proto: "to.come" l7_rules {} }'
    text = resource(IP + AUDIT % rule)
    waiting = compile_policies([text], lambda name: None)
    assert not waiting.endpoints["10.0.0.1"].settled
    factory = get_parser_factory("r2d2")
    later = compile_policies([text], lambda name: factory, previous=waiting)
    assert later.endpoints["10.0.0.1"].settled


def test_a_rule_about_server_names_is_closed() -> None:
    policy = compiled('port: 80 rules { server_names: "a.example.com" }')
    where = {"ingress": True, "port": 80, "remote": 1, "parser": "r2d2"}
    decision = policy.decide("10.0.0.1", **where)  # type: ignore[arg-type]
    assert decision.denied
    assert decision.reason == "server names cannot be judged here"
