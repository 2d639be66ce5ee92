"""Kubernetes' NetworkPolicy: what loads, and what it means in our terms."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from xds.documents import load_policies
from xds.labels import LabelSet, Selector, label_set, parse_label
from xds.policy import Cidr, Policy, Port
from xds.source import DocumentError, read_documents

HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: n}\n"


def load(spec: str, head: str = HEAD) -> Policy:
    (policy,) = load_policies(read_documents("n.yaml", head + spec))
    return policy


def pod(*labels: str, namespace: str = "n") -> LabelSet:
    texts = (*labels, f"k8s:io.kubernetes.pod.namespace={namespace}")
    return label_set(map(parse_label, texts))


POLICY = """
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: x}}
    - podSelector: {matchLabels: {role: front}}
    - namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [a, b]}]}
      podSelector: {matchLabels: {role: front}}
    ports:
    - {protocol: TCP, port: 6379}
    - {port: 1, endPort: 9, protocol: UDP}
    - {port: http}
    - {protocol: SCTP}
"""


def test_all_fields() -> None:
    policy = load(POLICY)
    assert policy.kind == "NetworkPolicy"
    assert policy.subject.matches(pod("k8s:app=db"))
    assert not policy.subject.matches(pod("k8s:app=db", namespace="m"))
    assert not policy.subject.matches(pod("container:app=db")), "labels from Kubernetes alone"
    (rule,) = policy.ingress
    block, by_namespace, by_pod, by_both = rule.peers or ()
    assert block == Cidr(ip_network("172.17.0.0/16"), (ip_network("172.17.1.0/24"),))
    assert isinstance(by_namespace, Selector)
    of_x = "k8s:io.cilium.k8s.namespace.labels.project=x"
    assert by_namespace.matches(pod(of_x, "k8s:role=any", namespace="m"))
    assert not by_namespace.matches(pod("k8s:role=any"))
    assert isinstance(by_pod, Selector)
    assert by_pod.matches(pod("k8s:role=front"))
    assert not by_pod.matches(pod("k8s:role=front", namespace="m"))
    assert isinstance(by_both, Selector)
    of_a = "k8s:io.cilium.k8s.namespace.labels.env=a"
    assert by_both.matches(pod(of_a, "k8s:role=front", namespace="m"))
    assert not by_both.matches(pod(of_a, namespace="m"))
    assert not by_both.matches(pod("k8s:role=front", namespace="m"))
    assert [port for entry in rule.ports or () for port in entry.ports] == [
        Port(6379, 0, "TCP"),
        Port(1, 9, "UDP"),
        Port("http", 0, "TCP"),
        Port(0, 0, "SCTP"),
    ]
    assert policy.default_deny(ingress=True)
    assert policy.default_deny(ingress=False), "named by policyTypes, without a rule"
    assert policy.egress == ()


def test_an_empty_rule_allows_everything() -> None:
    (rule,) = load("spec: {podSelector: {}, ingress: [{}]}").ingress
    assert rule.peers is None
    assert rule.ports is None
    (rule,) = load("spec: {podSelector: {}, ingress: [{from: [], ports: []}]}").ingress
    assert rule.peers is None
    assert rule.ports is None


def test_empty_namespace_selector_is_every_pod_of_any_namespace() -> None:
    policy = load("spec: {podSelector: {}, egress: [{to: [{namespaceSelector: {}}]}]}")
    (peer,) = policy.egress[0].peers or ()
    assert isinstance(peer, Selector)
    assert peer.matches(pod(namespace="anything"))
    assert not peer.matches(label_set([])), "no pod"
    assert not peer.matches(label_set([parse_label("reserved:world")]))


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{podSelector: {}}", True, False),
        ("{podSelector: {}, egress: [{}]}", True, True),
        ("{podSelector: {}, policyTypes: [Egress]}", False, True),
        ("{podSelector: {}, policyTypes: [Egress], ingress: []}", False, True),
    ],
)
def test_policy_types(spec: str, ingress: bool, egress: bool) -> None:
    policy = load(f"spec: {spec}")
    assert policy.default_deny(ingress=True) is ingress
    assert policy.default_deny(ingress=False) is egress


def test_without_a_namespace_it_is_about_all() -> None:
    head = HEAD.replace(", namespace: n", "")
    policy = load("spec: {podSelector: {matchLabels: {app: db}}}", head)
    assert policy.subject.matches(pod("k8s:app=db", namespace="m"))


RULE = "spec.ingress[0]"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{ingress: [{}]}", "spec.podSelector: is required"),
        ("{podSelector: {}, ingress: [{from: [{}]}]}", f"{RULE}.from[0]: needs either podSelector"),
        (
            "{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 1.0.0.0/8}}]}]}",
            f"{RULE}.from[0]: needs either podSelector and/or namespaceSelector, or ipBlock",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, exept: []}}]}]}",
            "unknown field; did you mean 'except'?",
        ),
        ("{podSelector: {}, ingress: [{fro: []}]}", "fro: unknown field; did you mean 'from'?"),
        (
            "{podSelector: {}, ingress: [{ports: [{port: 80, rules: {http: [{}]}}]}]}",
            f"{RULE}.ports[0].rules: unknown field",
        ),
        ("{podSelector: {}, ingress: [{ports: [{endPort: 8}]}]}", "the range 0-8 does not ascend"),
        ("{podSelector: {}, ingress: [{ports: [{protocol: ANY}]}]}", "must be 'TCP', 'UDP' or"),
        (
            "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}",
            "spec: has ingress rules, and policyTypes without Ingress",
        ),
        ("{podSelector: {}, policyTypes: [ingress]}", "must be 'Ingress' or 'Egress'"),
        ("{podSelector: {}, ingressDeny: []}", "spec.ingressDeny: unknown field"),
    ],
)
def test_refused(spec: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load(f"spec: {spec}")
    assert message in str(caught.value)
