"""The endpoints file."""

from __future__ import annotations

import pytest

from xds.endpoints import Endpoint, NamedPort, load_endpoints, with_extra
from xds.labels import label_set, parse_label
from xds.source import DocumentError, read_documents


def load(text: str) -> list[Endpoint]:
    return load_endpoints(read_documents("e.yaml", text))


def test_both_spellings() -> None:
    one, two, three = load(
        "endpoints:\n"
        "- address: 127.0.0.10\n"
        "  labels: {app: memcached, 'k8s:tier': back}\n"
        "- addresses: [127.0.0.11, '0:0::1']\n"
        "  labels: ['k8s:app=x', role]\n"
        "- address: 127.0.0.12\n"
    )
    assert one.addresses == ("127.0.0.10",)
    assert one.labels == label_set(map(parse_label, ["app=memcached", "k8s:tier=back"]))
    assert two.addresses == ("127.0.0.11", "::1")
    assert two.labels == label_set(map(parse_label, ["k8s:app=x", "role"]))
    assert three.labels == label_set([])
    assert str(two.place) == "e.yaml:4:3: endpoints[1]"


def test_reserved_label_alone() -> None:
    (host,) = load("endpoints: [{address: 127.0.0.1, labels: ['reserved:host']}]")
    assert host.labels.reserved


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{}", "endpoints[0]: needs either 'address' or 'addresses'"),
        ("{address: 1.2.3.4, addresses: ['::1']}", "needs either"),
        ("{address: 1.2.3}", "endpoints[0].address: '1.2.3' does not appear to be"),
        ("{address: 10.0.0.0/8}", "address: '10.0.0.0/8' does not appear"),
        ("{address: 'fe80::1%eth0'}", "with a zone"),
        ("{address: '::ffff:1.2.3.4'}", "write the IPv4 address 1.2.3.4"),
        ("{address: 5}", "address: must be text, not 5"),
        ("{address: }", "address: is empty"),
        ("{addresses: []}", "addresses: must have at least 1 item"),
        ("{addresses: ['::1', '::2', '::3']}", "addresses: has more than 2 items"),
        ("{address: 1.2.3.4, label: {}}", "label: unknown field; did you mean 'labels'?"),
        ("{address: 1.2.3.4, labels: {a: 1}}", "e.yaml:1:41: endpoints[0].labels.a: must be text"),
        ("{address: 1.2.3.4, labels: {'a b': x}}", 'labels["a b"]: '),
        ("{address: 1.2.3.4, labels: ['a b=x']}", "labels[0]: 'a b' has a space"),
        ("{address: 1.2.3.4, labels: x}", "labels: must be a mapping"),
        ("{address: 1.2.3.4, labels: ['k8s:a=1', 'a=2']}", "two labels have the key 'a'"),
        (
            "{address: 1.2.3.4, labels: ['reserved:nope']}",
            "reserved:nope= is no reserved label; these are unknown, host",
        ),
        (
            "{address: 1.2.3.4, labels: ['reserved:world', a]}",
            "reserved:world= stands alone; only h",
        ),
        (
            "{address: 1.2.3.4, labels: ['reserved:host', 'reserved:world']}",
            "reserved:host= and reserved:world= are two identities",
        ),
        (
            "{address: 1.2.3.4, labels: ['cidr:0.0.0.0/0']}",
            "labels of cidr: are those of addresses",
        ),
        ("{address: 1.2.3.4, ports: {A: 1}}", "ports.A: 'A' is not a port name"),
        (
            "{address: 1.2.3.4, ports: {a: 0}}",
            "ports.a: must be at least 1, not 0",
        ),
        ("{address: 1.2.3.4, enforcement: no}", "enforcement: must be 'default', 'always' or 'ne"),
        (
            "{address: 1.2.3.4, namespace: n, labels: {io.kubernetes.pod.namespace: m}}",
            "two labels have the key 'io.kubernetes.pod.namespace'",
        ),
        ("{address: 1.2.3.4}, {addresses: [1.2.3.4]}", "1.2.3.4 is taken already: e.yaml:1:13"),
    ],
)
def test_refused(item: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load(f"endpoints: [{item}]")
    assert message in str(caught.value)


def test_a_node_has_labels_of_its_own() -> None:
    (node,) = load("endpoints: [{address: 127.0.0.1, labels: ['reserved:host', 'k8s:type=a']}]")
    assert str(node.labels) == "reserved:host= k8s:type=a"
    two = "['reserved:remote-node', 'reserved:kube-apiserver']"
    (node,) = load(f"endpoints: [{{address: 127.0.0.1, labels: {two}}}]")
    assert str(node.labels) == "reserved:kube-apiserver= reserved:remote-node="


def test_namespace_ports_and_modes() -> None:
    one, two = load(
        "endpoints:\n"
        "- {address: 10.0.0.1, namespace: default, ports: {http: 80}, enforcement: always}\n"
        "- address: 10.0.0.2\n"
        "  ports: [{name: dns, port: 53, protocol: UDP}]\n"
        "  audit: true\n"
    )
    assert str(one.labels) == "k8s:io.kubernetes.pod.namespace=default"
    assert one.ports == (NamedPort("http", 80, "TCP"),)
    assert (one.enforcement, one.audit) == ("always", False)
    assert two.ports == (NamedPort("dns", 53, "UDP"),)
    assert (two.enforcement, two.audit) == ("default", True)


@pytest.mark.parametrize("text", ["a: 1", "[]", "endpoints:", "endpoints: {}"])
def test_not_an_endpoints_file(text: str) -> None:
    with pytest.raises(DocumentError):
        load(text)


def test_extra_endpoints_only_where_nobody_is() -> None:
    known = load("endpoints: [{address: 127.0.0.1, labels: {a: b}}]")
    both = with_extra(known, ["127.0.0.1", "127.0.0.2", "127.0.0.2", "0::1"])
    assert [endpoint.addresses for endpoint in both] == [("127.0.0.1",), ("127.0.0.2",), ("::1",)]
    assert both[1].labels == label_set([])
    with pytest.raises(ValueError):
        with_extra([], ["localhost"])
