"""Labels, selectors, and the law that a selector is the conjunction of its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.labels import (
    Label,
    LabelSet,
    Operator,
    Requirement,
    Selector,
    label_set,
    parse_label,
    requirement,
    split_key,
)

IN, NOT_IN = Operator.IN, Operator.NOT_IN
EXISTS, DOES_NOT_EXIST = Operator.EXISTS, Operator.DOES_NOT_EXIST


def labels(*texts: str) -> LabelSet:
    return label_set(map(parse_label, texts))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("app", Label("app")),
        ("app=x", Label("app", "x", "unspec")),
        ("any:app=x", Label("app", "x", "unspec")),
        ("k8s:app=x", Label("app", "x", "k8s")),
        ("k8s:io.cilium/a.b=c:d=e", Label("io.cilium/a.b", "c:d=e", "k8s")),
        ("reserved:host", Label("host", "", "reserved")),
    ],
)
def test_parse(text: str, label: Label) -> None:
    assert parse_label(text) == label


@pytest.mark.parametrize(
    "text", ["", ":a", "k8s:", "=x", "a b", "a=b c", "a\n", "k8s:" + "a" * 600]
)
def test_not_a_label(text: str) -> None:
    with pytest.raises(ValueError):
        parse_label(text)


def test_equals_sign_in_a_selector_key() -> None:
    with pytest.raises(ValueError, match="'=' in its key"):
        split_key("app=x")


def test_one_label_per_key() -> None:
    with pytest.raises(ValueError, match="two labels have the key 'app'"):
        labels("k8s:app=x", "container:app=y")


def test_order_does_not_matter() -> None:
    assert labels("a=1", "b=2") == labels("b=2", "a=1")
    assert hash(labels("a=1", "b=2")) == hash(labels("b=2", "a=1"))
    assert str(labels("b", "k8s:a=1")) == "k8s:a=1 unspec:b="


@pytest.mark.parametrize(
    ("need", "label", "matches"),
    [
        (requirement("app", IN, ["x"]), "k8s:app=x", True),
        (requirement("app", IN, ["x"]), "app=x", True),
        (requirement("any:app", IN, ["x", "y"]), "container:app=y", True),
        (requirement("k8s:app", IN, ["x"]), "k8s:app=x", True),
        (requirement("k8s:app", IN, ["x"]), "container:app=x", False),
        (requirement("k8s:app", IN, ["x"]), "app=x", False),
        (requirement("app", IN, ["x"]), "app=y", False),
        (requirement("app", IN, ["x"]), "b=x", False),
        (requirement("app", IN, [""]), "app", True),
        (requirement("app", NOT_IN, ["x"]), "app=y", True),
        (requirement("app", NOT_IN, ["x"]), "app=x", False),
        (requirement("app", NOT_IN, ["x"]), "b=x", True),
        (requirement("k8s:app", NOT_IN, ["x"]), "container:app=x", True),
        (requirement("app", EXISTS), "app", True),
        (requirement("app", EXISTS), "apple", False),
        (requirement("k8s:app", EXISTS), "app", False),
        (requirement("app", DOES_NOT_EXIST), "app", False),
        (requirement("app", DOES_NOT_EXIST), "b", True),
    ],
)
def test_requirement(need: Requirement, label: str, matches: bool) -> None:
    assert need.matches(labels(label)) is matches


def test_everybody_is_every_endpoint_and_nobody_reserved() -> None:
    everybody = Selector()
    world = labels("reserved:world")
    assert everybody.matches(labels())
    assert everybody.matches(labels("app=x"))
    assert not everybody.matches(world)
    not_x = Selector(frozenset({requirement("app", NOT_IN, ["x"])}))
    assert not not_x.matches(world)
    assert Selector(frozenset({requirement("reserved:world", EXISTS)})).matches(world)
    assert not Selector(frozenset({requirement("reserved:host", DOES_NOT_EXIST)})).matches(world)


keys = st.sampled_from(["a", "b", "k8s:a", "container:b", "any:a"])
values = st.sampled_from(["", "x", "y"])
sets = st.dictionaries(st.sampled_from("ab"), st.tuples(values, st.sampled_from(["", "k8s:"]))).map(
    lambda d: labels(*(f"{source}{key}={value}" for key, (value, source) in d.items()))
)
requirements = st.one_of(
    st.builds(requirement, keys, st.sampled_from([IN, NOT_IN]), st.sets(values, min_size=1)),
    st.builds(requirement, keys, st.sampled_from([EXISTS, DOES_NOT_EXIST])),
)


@given(st.frozensets(requirements), sets)
def test_selector_is_a_conjunction(needs: frozenset[Requirement], found: LabelSet) -> None:
    assert Selector(needs).matches(found) == all(need.matches(found) for need in needs)


@given(keys, st.sets(values, min_size=1), sets)
def test_negations_are_complements(key: str, wanted: set[str], found: LabelSet) -> None:
    for positive, negative, args in ((IN, NOT_IN, wanted), (EXISTS, DOES_NOT_EXIST, set[str]())):
        yes, no = requirement(key, positive, args), requirement(key, negative, args)
        assert yes.matches(found) is not no.matches(found)
