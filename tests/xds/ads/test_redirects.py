"""Redirects come and go with their ports; Envoy's own part is in tests/integration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from proxylib.errors import ConfigError
from tests.xds.ads.judge import parsed
from xds.ads.ports import ProxyPorts
from xds.ads.redirects import Redirects
from xds.ads.resources import Direction, NodeConfig, Redirect
from xds.ads.types import LISTENER
from xds.subscription import StreamStatus
from xds.world import Resource

NODE = NodeConfig(Path("/run/x.sock"), Path("/run/l.sock"), "node")
EGRESS = Redirect("r2d2", Direction.EGRESS, 0)
INGRESS = Redirect("r2d2", Direction.INGRESS, 0)


class Published(list[Mapping[str, Mapping[str, Resource]]]):
    """What was published, the newest last."""

    def listeners(self) -> dict[str, int]:
        return {
            name: listener["address"]["socketAddress"]["portValue"]
            for name, listener in parsed(self[-1], LISTENER).items()
        }


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def ports() -> ProxyPorts:
    return ProxyPorts(first=10000, last=10002, free=lambda number: True)


@pytest.fixture
def redirects(published: Published, ports: ProxyPorts) -> Redirects:
    return Redirects(NODE, ports, published.append)


def test_each_has_a_port_of_its_own(redirects: Redirects, published: Published) -> None:
    assert redirects.put([EGRESS, INGRESS]) == {"r2d2/egress": 10000, "r2d2/ingress": 10001}
    assert redirects.realized() == published.listeners()


def test_the_same_again_is_the_same(redirects: Redirects, published: Published) -> None:
    redirects.put([EGRESS, INGRESS])
    redirects.put([INGRESS, EGRESS])
    assert published[0] == published[1]


def test_what_is_gone_gives_its_port_up_and_gets_it_again(
    redirects: Redirects, ports: ProxyPorts
) -> None:
    redirects.put([EGRESS, INGRESS])
    assert redirects.put([INGRESS]) == {"r2d2/ingress": 10001}
    assert ports.assigned() == {"r2d2/ingress": 10001}
    assert redirects.put([EGRESS]) == {"r2d2/egress": 10000}


def test_a_port_may_be_chosen(redirects: Redirects, ports: ProxyPorts) -> None:
    assert redirects.put([replace(EGRESS, port=4000)]) == {"r2d2/egress": 4000}
    assert ports.assigned() == {}


def test_what_contradicts_itself_changes_nothing(
    redirects: Redirects, published: Published, ports: ProxyPorts
) -> None:
    redirects.put([EGRESS])
    for bad in ([INGRESS, replace(EGRESS, upstream="none")], [EGRESS, replace(EGRESS, port=1)]):
        with pytest.raises(ConfigError):
            redirects.put(bad)
    many = [Redirect(f"p{number}", Direction.BOTH, 0) for number in range(4)]
    with pytest.raises(ConfigError, match="no proxy port is left"):
        redirects.put(many)
    assert len(published) == 1
    assert redirects.realized() == ports.assigned() == {"r2d2/egress": 10000}


def test_only_a_port_that_envoy_complains_about_moves(
    redirects: Redirects, published: Published
) -> None:
    redirects.put([EGRESS, INGRESS])
    status = StreamStatus("n", LISTENER, nacked_version=1, refused=("r2d2/egress",))
    reasons = {
        "Address already in use": {},
        "cannot bind '127.0.0.1:10001': Address already in use": {},
        "cannot bind '127.0.0.1:10000': Permission denied": {},
        "cannot bind '127.0.0.1:10000': Address already in use": {"r2d2/egress": 10002},
    }
    for reason, moved in reasons.items():
        assert redirects.resolve([replace(status, reason=reason)]) == moved, reason
    assert published.listeners() == {"r2d2/egress": 10002, "r2d2/ingress": 10001}
    assert redirects.resolve([replace(status, reason=reason)]) == {}, "that was the old port"
