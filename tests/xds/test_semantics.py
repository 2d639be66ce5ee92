"""The meaning of policies, told a second time and naively, against the data path.

Random policies and endpoints are compiled and read by the data path; what it lets
through must be exactly what docs/policy.md says, evaluated rule by rule.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xds.test_compilation import OUTSIDE, World

APPS = ("a", "b", "c")
ADDRESSES = {f"10.0.0.{n}": app for n, app in enumerate(APPS, 1)}
ENDPOINTS = json.dumps(
    {"endpoints": [{"address": ip, "labels": {"app": app}} for ip, app in ADDRESSES.items()]}
)
PORTS = (79, 80, 81, 90)
COMMANDS = ("HALT", "RESET")

selectors = st.sampled_from(
    [
        {},
        *({"matchLabels": {"app": app}} for app in (*APPS, "none")),
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]},
    ]
)
ports = st.sampled_from(
    [
        {"port": 0, "protocol": "TCP"},
        {"port": 80, "protocol": "TCP"},
        {"port": 80, "endPort": 81, "protocol": "TCP"},
        {"port": 90, "protocol": "ANY"},
        {"port": 80, "protocol": "UDP"},
    ]
)
l7 = st.lists(
    st.sampled_from([{"cmd": "HALT"}, {"cmd": "RESET"}, {"file": "x"}, {}]), min_size=1, max_size=2
)


@st.composite
def rules(draw: st.DrawFn, deny: bool) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if draw(st.booleans()):
        rule["fromEndpoints"] = draw(st.lists(selectors, max_size=2))
    if draw(st.booleans()):
        entry: dict[str, Any] = {"ports": draw(st.lists(ports, min_size=1, max_size=2))}
        plain = all(port["port"] and port["protocol"] == "TCP" for port in entry["ports"])
        if not deny and plain and draw(st.booleans()):
            entry["rules"] = {"l7proto": "r2d2", "l7": draw(l7)}
        rule["toPorts"] = [entry]
    return rule


specs = st.fixed_dictionaries(
    {
        "endpointSelector": selectors,
        "ingress": st.lists(rules(deny=False), min_size=1, max_size=3),
        "ingressDeny": st.lists(rules(deny=True), max_size=1),
    }
)


def selects(selector: dict[str, Any], app: str) -> bool:
    if not app:
        return False
    return selector.get("matchLabels", {"app": app})["app"] == app and not (
        "matchExpressions" in selector and app == "a"
    )


def covers(rule: dict[str, Any], client: str, port: int, cmd: str) -> bool:
    if not rule:
        return False
    if "fromEndpoints" in rule and not any(selects(s, client) for s in rule["fromEndpoints"]):
        return False
    if "toPorts" not in rule:
        return True
    (entry,) = rule["toPorts"]
    if not any(
        p["protocol"] != "UDP"
        and (p["port"] == 0 or p["port"] <= port <= p.get("endPort", p["port"]))
        for p in entry["ports"]
    ):
        return False
    wanted = entry.get("rules", {}).get("l7") or [{}]
    return any("file" not in item and item.get("cmd", cmd) == cmd for item in wanted)


def allowed(policies: list[dict[str, Any]], server: str, client: str, port: int, cmd: str) -> bool:
    mine = [policy for policy in policies if selects(policy["endpointSelector"], server)]
    if not mine:
        return True
    if any(covers(rule, client, port, cmd) for p in mine for rule in p["ingressDeny"]):
        return False
    return any(covers(rule, client, port, cmd) for p in mine for rule in p["ingress"])


@settings(max_examples=150, deadline=None)
@given(st.lists(specs, max_size=3))
def test_data_path_does_what_the_policies_say(policies: list[dict[str, Any]]) -> None:
    documents = [
        {"kind": "CiliumNetworkPolicy", "metadata": {"name": f"p{n}"}, "spec": spec}
        for n, spec in enumerate(policies)
    ]
    world = World("\n---\n".join(map(json.dumps, documents)), ENDPOINTS)
    clients = {**ADDRESSES, OUTSIDE: ""}
    for server, server_app in ADDRESSES.items():
        for client, app in clients.items():
            for port in PORTS:
                for cmd in COMMANDS:
                    expected = allowed(policies, server_app, app, port, cmd)
                    found = world.allows(client, server, port, cmd=cmd)
                    assert found is expected, (server_app, app, port, cmd)
