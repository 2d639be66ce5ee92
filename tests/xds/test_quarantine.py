"""A bad rule is closed by itself; nothing is open that was to be closed."""

from __future__ import annotations

import pytest

from xds.documents import Loaded, load_closed
from xds.labels import Selector, label_set, parse_label
from xds.policy import Policy
from xds.source import read_documents

HEAD = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"
BAD_PORT = "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {l7proto: gone, l7: [{}]}}]"
ANYBODY = label_set([parse_label("app=x")])


def load(text: str) -> Loaded:
    return load_closed(read_documents("q.yaml", text))


def policy(rules: str) -> Policy:
    """The one policy of `rules`, of which one is bad."""
    loaded = load(HEAD + "".join(f"  {line}\n" for line in rules.splitlines()))
    assert loaded.left_out == []
    assert len(loaded.quarantined) == 1
    (found,) = loaded.policies
    return found


def admits(selectors: tuple[Selector, ...]) -> bool:
    return all(selector.matches(ANYBODY) for selector in selectors)


def test_an_allow_rule_allows_nobody_and_the_others_stay() -> None:
    found = policy(f"ingress:\n- {{{BAD_PORT}}}\n- fromEndpoints: [{{matchLabels: {{a: b}}}}]")
    bad, good = found.ingress
    assert bad.empty
    assert not bad.deny
    message = "q.yaml:6:61: spec.ingress[0].toPorts[0].rules.l7proto: no parser is called 'gone'"
    assert str(bad.quarantined).startswith(message)
    assert good.quarantined is None
    assert [str(peer) for peer in good.peers or ()] == ["a=b"]
    assert found.default_deny(ingress=True)


def test_a_requirement_outlives_its_rule() -> None:
    text = "ingress:\n- fromRequires: [{matchLabels: {env: prod}}]\n  " + BAD_PORT
    (rule,) = policy(text).ingress
    assert rule.empty
    assert [str(selector) for selector in rule.requires] == ["env=prod"]


@pytest.mark.parametrize("bad", ["fromRequires: [{matchLabels: [x]}]", "fromRequire: [{}]"])
def test_a_requirement_that_cannot_be_read_is_met_by_nobody(bad: str) -> None:
    (rule,) = policy(f"ingress:\n- {bad}").ingress
    assert rule.empty
    assert rule.requires
    assert not admits(rule.requires)


def test_a_denial_becomes_wider() -> None:
    def denial(rule: str) -> tuple[str, str]:
        (found,) = policy(f"ingressDeny:\n- {rule}").ingress
        assert found.deny
        return str(found.peers), str(found.ports)

    bad_ports = "toPorts: [{ports: [{port: -1}]}]"
    good_ports = "toPorts: [{ports: [{port: 80}]}]"
    peers, ports = denial(f"{{fromEntities: [host], {bad_ports}}}")
    assert "reserved" in peers
    assert ports == "None"
    peers, ports = denial(f"{{fromEntities: [hots], {good_ports}}}")
    assert peers == "None"
    assert "port=80" in ports
    assert denial(f"{{fromEntities: [hots], {bad_ports}}}") == ("None", "None")
    assert denial(f"{{fromEndpoint: [{{}}], {bad_ports}}}") == ("None", "None")
    assert denial("text") == ("None", "None")


def test_kubernetes_rule_that_is_bad_is_not_an_empty_one() -> None:
    """There, an empty rule would allow everything."""
    loaded = load(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
        "spec:\n  podSelector: {}\n  egress:\n  - ports: [{port: -1}]\n  - to: []\n"
    )
    (found,) = loaded.policies
    bad, good = found.egress
    assert bad.quarantined is not None
    assert bad.peers is not None
    assert not any(isinstance(p, Selector) and p.matches(ANYBODY) for p in bad.peers)
    assert good.peers is None
    assert found.default_deny(ingress=False)


def test_specs_of_both_spellings() -> None:
    rules = "endpointSelector: {}, ingress: [{}, {fromEntities: [x]}]"
    loaded = load(
        f"kind: CiliumNetworkPolicy\nmetadata: {{name: a}}\nspecs: {{{rules}}}\n---\n"
        f"kind: CiliumNetworkPolicy\nmetadata: {{name: b}}\nspecs: [{{{rules}}}, {{{rules}}}]\n"
    )
    assert [p.place.path for p in loaded.quarantined] == [
        "specs.ingress[1].fromEntities[0]",
        "specs[0].ingress[1].fromEntities[0]",
        "specs[1].ingress[1].fromEntities[0]",
    ]
    assert [len(p.ingress) for p in loaded.policies] == [2, 2, 2]


@pytest.mark.parametrize(
    "text",
    [
        HEAD.replace("{}", "{matchLabels: x}") + "  ingress: [{}, {fromEntities: [x]}]",
        HEAD.replace("name: p", "nam: p") + "  ingress: [{}]",
        HEAD + "  ingress: {}",
        "[]",
    ],
)
def test_what_is_no_rule_leaves_the_document_out_and_no_other(text: str) -> None:
    good = HEAD.replace("name: p", "name: good") + "  ingress: [{}]\n---\n"
    loaded = load(good + text)
    assert [p.name for p in loaded.policies] == ["good"]
    assert loaded.left_out
    assert loaded.quarantined == []


def test_a_name_used_twice_leaves_the_second_out() -> None:
    loaded = load(f"{HEAD}  ingress: [{{}}]\n---\n{HEAD}  egress: [{{}}]\n")
    assert [bool(p.ingress) for p in loaded.policies] == [True]
    assert "is the name of another policy" in str(loaded.left_out[0])


def test_good_documents_are_as_they_were() -> None:
    loaded = load(HEAD + "  ingress: [{}]\n")
    assert (loaded.quarantined, loaded.left_out) == ([], [])
    assert loaded.policies[0].ingress[0].quarantined is None
