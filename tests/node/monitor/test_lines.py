"""Entries as lines, held against the source document's own (EX-20, features D-001 to D-004)."""

from __future__ import annotations

from typing import Any

import pytest

from node.console import paint
from node.monitor.lines import line

ALPINE = {
    "address": "10.0.1.1:4242",
    "endpoint": 0,
    "identity": 5371,
    "labels": [
        "k8s:app=alpine",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=default",
    ],
}
NGINX = {
    "address": "10.0.0.1:80",
    "endpoint": 931,
    "identity": 34796,
    "labels": [
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:app=nginx",
        "k8s:io.kubernetes.pod.namespace=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
    ],
}


def http(method: str, status: int, **more: Any) -> dict[str, Any]:
    fields = {"method": method, "scheme": "http", "host": "nginx", "path": "/welcome"}
    return {
        "type": "l7",
        "time": "2026-01-02T03:04:05.000000006Z",
        "kind": "request",
        "verdict": "Forwarded",
        "direction": "ingress",
        "source": ALPINE,
        "destination": NGINX,
        "proto": "http",
        "fields": {**fields, "status": status},
        "latency_ns": None,
        "policy": "",
        "rule": "",
        **more,
    }


def generic(proto: str, **fields: Any) -> dict[str, Any]:
    return http("", 0, proto=proto, fields=fields)


SOURCE_DOCUMENT = """\
<- Request http from 0 ([k8s:app=alpine k8s:io.cilium.k8s.policy.cluster=default \
k8s:io.cilium.k8s.policy.serviceaccount=default k8s:io.kubernetes.pod.namespace=default]) \
to 931 ([k8s:io.cilium.k8s.policy.cluster=default k8s:app=nginx \
k8s:io.kubernetes.pod.namespace=default k8s:io.cilium.k8s.policy.serviceaccount=default]), \
identity 5371->34796, verdict Denied HEAD http://nginx/welcome => 403
<- Request http from 0 ([k8s:app=alpine k8s:io.cilium.k8s.policy.cluster=default \
k8s:io.cilium.k8s.policy.serviceaccount=default k8s:io.kubernetes.pod.namespace=default]) \
to 931 ([k8s:io.cilium.k8s.policy.cluster=default k8s:app=nginx \
k8s:io.kubernetes.pod.namespace=default k8s:io.cilium.k8s.policy.serviceaccount=default]), \
identity 5371->34796, verdict Forwarded GET http://nginx/welcome => 0
<- Response http to 0 ([k8s:app=alpine k8s:io.cilium.k8s.policy.cluster=default \
k8s:io.cilium.k8s.policy.serviceaccount=default k8s:io.kubernetes.pod.namespace=default]) \
from 931 ([k8s:io.cilium.k8s.policy.cluster=default k8s:app=nginx \
k8s:io.kubernetes.pod.namespace=default k8s:io.cilium.k8s.policy.serviceaccount=default]), \
identity 5371->34796, verdict Forwarded GET http://nginx/welcome => 200
"""


def test_http_is_as_in_the_source_document() -> None:
    entries = [
        http("HEAD", 403, verdict="Denied"),
        http("GET", 0),
        http("GET", 200, kind="response"),
    ]
    assert "".join(f"{line(entry, 1)}\n" for entry in entries) == SOURCE_DOCUMENT


def test_without_labels_and_with_addresses() -> None:
    entry = http("GET", 200, kind="response", direction="egress", latency_ns=1_500_000)
    short = (
        "-> Response http to 0 from 931, identity 5371->34796, "
        "verdict Forwarded GET http://nginx/welcome => 200"
    )
    assert line(entry) == short
    long = line(entry, 2)
    assert long.startswith("2026-01-02T03:04:05.000000006Z -> Response http to 0 ([k8s:app=alpine")
    assert long.endswith("=> 200 (10.0.1.1:4242 -> 10.0.0.1:80, latency 1.500 ms)")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (generic("memcache", command="get", keys="alliance/x"), "get alliance/x"),
        (
            generic("memcache", command="set", keys="a, b", status="CLIENT_ERROR access denied"),
            "set a, b => CLIENT_ERROR access denied",
        ),
        (generic("r2d2", cmd="HALT"), "HALT"),
        (generic("r2d2", cmd="READ", file="x y"), "READ x y"),
        (
            generic("cassandra", query_action="select", query_table="ks.t", user="ann"),
            "select ks.t user=ann",
        ),
        (
            generic("kafka", api="produce", topics=["empire", "b"], error_code=29),
            "produce topic empire, b => 29",
        ),
        (generic("kafka", api="apiversions", api_key=18, topics=[]), "apiversions => 0"),
        (generic("r2d2", status="Panic: boom"), "=> Panic: boom"),
        (generic("other", any="thing"), "any=thing"),
    ],
)
def test_other_parsers_are_in_the_same_spirit(entry: dict[str, Any], said: str) -> None:
    head = f"<- Request {entry['proto']} from 0 to 931, identity 5371->34796, verdict Forwarded "
    assert line(entry) == head + said


def test_a_client_moves_no_cursor() -> None:
    entry = generic("r2d2", cmd="READ\n\x1b[2J", file="\r<- Request")
    for verbose in (0, 1, 2):
        assert line(entry, verbose).isprintable()


def test_colours() -> None:
    text = line(http("GET", 403, verdict="Denied"), 0, paint)
    assert "verdict \x1b[31m\x1b[1mDenied\x1b[0m GET" in text


def test_what_was_lost_is_told() -> None:
    for where, what in (("monitor", "too slow"), ("proxy", "the proxy"), ("events", "ring buffer")):
        text = line({"type": "lost", "from": where, "count": 12})
        assert text.startswith("-- 12 entries were lost here: ")
        assert what in text
    assert "the agent ends" in line({"type": "end", "reason": "the agent ends"})


def test_a_type_that_a_newer_agent_has() -> None:
    assert line({"type": "new", "what": "\x07"}) == "{'type': 'new', 'what': '\\x07'}"
