"""Whether policies are about a proxy at all."""

from __future__ import annotations

import pytest

from node.policies import irrelevance, rules_of
from xds.documents import load_policies
from xds.labels import Label, label_set
from xds.source import read_documents

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {app: droid}}
  ingress:
  - toPorts:
    - ports: [{port: "4040", protocol: TCP}, {port: "5000", endPort: 5009, protocol: TCP}]
      rules: {l7proto: r2d2, l7: [{cmd: HALT}]}
  egress:
  - {}
"""

OPEN = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: open}
spec:
  endpointSelector: {matchLabels: {app: droid}}
  ingress:
  - fromEndpoints: [{}]
"""


@pytest.mark.parametrize(
    ("app", "port", "parser", "ingress", "message"),
    [
        ("droid", 4040, "r2d2", True, ""),
        ("droid", 5009, "r2d2", True, ""),
        ("cat", 4040, "r2d2", True, "no policy is about WHO: EVERYTHING IS ALLOWED"),
        (
            "droid",
            5010,
            "r2d2",
            True,
            "no policy is about port 5010 of WHO, only about 4040, 5000: nothing is allowed",
        ),
        (
            "droid",
            4040,
            "memcache",
            True,
            "the policies for port 4040 are for l7proto r2d2, not memcache",
        ),
    ],
)
def test_one_policy(app: str, port: int, parser: str, ingress: bool, message: str) -> None:
    policies = load_policies(read_documents("p.yaml", POLICY))
    labels = [label_set([Label("app", app)])]
    found = irrelevance(policies, labels, "WHO", ingress=ingress, port=port, parser=parser)
    assert found == message


def test_rules_of_nobody_and_of_one_direction() -> None:
    policies = load_policies(read_documents("p.yaml", POLICY))
    droid, cat = (label_set([Label("app", name)]) for name in ("droid", "cat"))
    assert rules_of(policies, [cat], ingress=True) == []
    assert rules_of(policies, [cat, droid], ingress=True) == list(policies[0].ingress)
    assert rules_of(policies, [droid], ingress=False) == list(policies[0].egress)


def test_a_rule_without_ports_is_about_every_port() -> None:
    policies = load_policies(read_documents("p.yaml", OPEN))
    labels = [label_set([Label("app", "droid")])]
    assert irrelevance(policies, labels, "WHO", ingress=True, port=1, parser="r2d2") == ""
    found = irrelevance(policies, labels, "WHO", ingress=False, port=1, parser="r2d2")
    assert found == "no policy is about WHO: EVERYTHING IS ALLOWED"
