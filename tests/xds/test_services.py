"""The service table: what names and selectors of services stand for."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from xds.endpoints import load_endpoints, load_services
from xds.labels import Operator, Selector, requirement
from xds.policy import Cidr, Service
from xds.services import ServiceTable
from xds.source import DocumentError, read_documents

SERVICES = """
endpoints: [{address: 10.0.0.1}]
services:
- {name: web, namespace: default, selector: {app: nginx}, labels: {tier: front}}
- {name: web, namespace: other, selector: {app: nginx}}
- name: db
  namespace: default
  labels: ["k8s:tier=back", head=none]
  addresses: [192.0.2.1, "2001:db8::1"]
"""


def table(text: str = SERVICES) -> ServiceTable:
    return load_services(read_documents("s.yaml", text))


def selector(**labels: str) -> Selector:
    return Selector(
        frozenset(requirement(k.replace("__", ":"), Operator.IN, [v]) for k, v in labels.items())
    )


def nginx(namespace: str) -> Selector:
    needs = [
        requirement("app", Operator.IN, ["nginx"]),
        requirement("k8s:io.kubernetes.pod.namespace", Operator.IN, [namespace]),
    ]
    return Selector(frozenset(needs))


DB = (Cidr(ip_network("192.0.2.1/32")), Cidr(ip_network("2001:db8::1/128")))


@pytest.mark.parametrize(
    ("wanted", "backends"),
    [
        (Service("web", "default"), (nginx("default"),)),
        (Service("web"), (nginx("default"), nginx("other"))),
        (Service("db", "default"), DB),
        (Service("db", "other"), ()),
        (Service(selector=selector(head="none")), DB),
        (Service(selector=selector(k8s__tier="back")), DB),
        (Service(selector=selector(k8s__tier="front")), ()),
        (Service(namespace="default", selector=Selector()), (nginx("default"), *DB)),
        (Service("nothing"), ()),
    ],
)
def test_resolve(wanted: Service, backends: tuple[Selector | Cidr, ...]) -> None:
    assert table().resolve(wanted) == backends


def test_a_file_may_have_both_or_one() -> None:
    assert len(load_endpoints(read_documents("s.yaml", SERVICES))) == 1
    only = "services: [{name: a, addresses: [10.0.0.1]}]"
    assert load_endpoints(read_documents("s.yaml", only)) == []
    assert table("endpoints: []").resolve(Service("a")) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [{name: a}]", "services[0]: needs a 'selector', 'addresses', or both"),
        ("services: [{name: a, selector: {}}]", "services[0]: needs a 'selector'"),
        ("services: [{name: a, addresses: [a]}]", "services[0].addresses[0]: 'a' does not appear"),
        ("services: [{selector: {a: b}}]", "services[0].name: is required"),
        ("services: [{nme: a}]", "unknown field; did you mean 'name'?"),
        (
            "services:\n- {name: a, selector: {a: b}}\n- {name: a, selector: {a: b}}",
            "s.yaml:3:3: services[1]: 'a' is a service already: s.yaml:2:3: services[0]",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        table(text)
    assert message in str(caught.value)
