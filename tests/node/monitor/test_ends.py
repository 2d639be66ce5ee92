"""Addresses and identities to endpoints and labels."""

from __future__ import annotations

import pytest

from node.monitor.ends import UNKNOWN, Ends, host_of
from xds.endpoints import Endpoint
from xds.engine import Change, Engine
from xds.labels import label_set, parse_label


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[fd00::1]:80", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("", ""),
        ("[", ""),
        (":::", ":::"),
    ],
)
def test_host_of(address: str, host: str) -> None:
    assert host_of(address) == host


def test_ends_are_as_they_are_now() -> None:
    engine = Engine()
    ends = Ends(engine)
    assert ends.endpoint("10.0.0.1:80") == 0
    assert ends.labels(256) == UNKNOWN
    assert ends.labels(2) == ("reserved:world",)
    labels = label_set(map(parse_label, ("k8s:b=2", "k8s:a=1", "k8s:alone")))
    engine.change(Change(endpoints={7: Endpoint(("10.0.0.1", "fd00::1"), labels)}))
    assert ends.endpoint("10.0.0.1:80") == ends.endpoint("[fd00::1]:80") == 7
    assert (ends.identity(7), ends.identity(8), ends.identity(0)) == (256, 0, 0)
    assert ends.end("10.0.0.1:80", 7, 256) == {
        "address": "10.0.0.1:80",
        "endpoint": 7,
        "identity": 256,
        "labels": ["k8s:a=1", "k8s:alone", "k8s:b=2"],
    }
    engine.change(Change(endpoints={7: None}))
    assert ends.endpoint("10.0.0.1:80") == 0
