"""What is generated for a node's redirects, and what a real Envoy says to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from proxylib.errors import ConfigError
from tests.xds.ads.judge import Built, documents, parsed, refused
from xds.ads.clusters import Upstream
from xds.ads.resources import Direction, NodeConfig, Redirect, Transparency, build
from xds.ads.secrets import TlsSecret, read_secret
from xds.ads.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET

NODE = NodeConfig(Path("/run/proxylib/xds.sock"), Path("/run/proxylib/access_log.sock"), "node")
EMBEDDED = replace(NODE, transparency=None, hosts=("127.0.0.1",))

R2D2 = Redirect("r2d2", Direction.EGRESS, 10000)
BOTH = Redirect("memcache", Direction.BOTH, 10001)
HTTP = Redirect("http", Direction.INGRESS, 10002, http=True)
TO_CACHES = Redirect("memcache", Direction.INGRESS, 10003, upstream="caches")
CACHES = Upstream("caches", (("127.0.0.1", 11211), ("::1", 11211)))


_OPENSSL = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
    "-subj /CN=server -addext subjectAltName=DNS:server"
)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem of one certificate."""
    folder = tmp_path_factory.mktemp("pem")
    subprocess.run(
        [*_OPENSSL.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def secrets(pem: Path) -> list[TlsSecret]:
    return [
        read_secret("front", certificate=pem / "cert.pem", private_key=pem / "key.pem"),
        read_secret("back", trusted_ca=pem / "cert.pem"),
        read_secret("other", trusted_ca=pem / "cert.pem"),
    ]


def filters(listener: dict[str, Any]) -> list[str]:
    (chain,) = listener["filterChains"]
    return [item["name"].rpartition(".")[2] for item in chain["filters"]]


def told(listener: dict[str, Any], place: int) -> dict[str, Any]:
    """What the parser's filter at `place` of the chain is told."""
    module = listener["filterChains"][0]["filters"][place]["typedConfig"]
    found: dict[str, Any] = json.loads(module["filterConfig"]["value"])
    return found


def test_one_listener_per_redirect_with_its_chain() -> None:
    built = build(NODE, [R2D2, BOTH])
    listeners = parsed(built, LISTENER)
    assert sorted(listeners) == ["memcache/both", "r2d2/egress"]
    one = listeners["r2d2/egress"]
    assert filters(one) == ["dynamic_modules", "tcp_proxy"]
    assert told(one, 0)["parser"] == "r2d2"
    assert told(one, 0)["ingress"] is False
    assert one["address"]["socketAddress"] == {"address": "127.0.0.1", "portValue": 10000}
    (other,) = one["additionalAddresses"]
    assert other["address"]["socketAddress"] == {"address": "::1", "portValue": 10000}


def test_both_directions_are_judged_in_one_pass() -> None:
    """The client's egress first: what it may not send is not judged as ingress."""
    both = parsed(build(NODE, [BOTH]), LISTENER)["memcache/both"]
    assert filters(both) == ["dynamic_modules", "dynamic_modules", "tcp_proxy"]
    assert [told(both, place)["ingress"] for place in (0, 1)] == [False, True]


def test_transparent_listeners() -> None:
    marked = replace(NODE, transparency=Transparency(upstream_mark=0xB00, listener_mark=0x123))
    one = parsed(build(marked, [R2D2]), LISTENER)["r2d2/egress"]
    assert one["transparent"] is True
    names = [item["name"].rpartition(".")[2] for item in one["listenerFilters"]]
    assert names == ["original_dst", "original_src"]
    assert one["listenerFilters"][1]["typedConfig"]["mark"] == 0xB00
    (option,) = one["socketOptions"]
    assert (option["level"], option["name"], option["intValue"]) == ("1", "36", "291")
    plain = parsed(build(EMBEDDED, [TO_CACHES], [CACHES]), LISTENER)[TO_CACHES.name]
    assert "transparent" not in plain
    assert "listenerFilters" not in plain


def test_original_destination_takes_more_than_envoy_s_default() -> None:
    cluster = parsed(build(NODE, [R2D2, BOTH]), CLUSTER)["original-dst"]
    assert (cluster["type"], cluster["lbPolicy"]) == ("ORIGINAL_DST", "CLUSTER_PROVIDED")
    (threshold,) = cluster["circuitBreakers"]["thresholds"]
    assert threshold["maxConnections"] == threshold["maxPendingRequests"] == 50_000


def test_upstreams_come_by_eds() -> None:
    built = build(NODE, [TO_CACHES], [CACHES, Upstream("unused", ())])
    cluster = parsed(built, CLUSTER)["to=caches"]
    assert cluster["edsClusterConfig"]["serviceName"] == "caches"
    assert list(built[ENDPOINTS]) == ["caches"], "what nobody leads to is not sent"
    assert built[CLUSTER][cluster["name"]].refreshes == ((ENDPOINTS, "caches"),)
    (locality,) = parsed(built, ENDPOINTS)["caches"]["endpoints"]
    hosts = [e["endpoint"]["address"]["socketAddress"] for e in locality["lbEndpoints"]]
    assert hosts == [
        {"address": "127.0.0.1", "portValue": 11211},
        {"address": "::1", "portValue": 11211},
    ]


def test_http_has_a_connection_manager_and_routes() -> None:
    built = build(NODE, [HTTP])
    listener = parsed(built, LISTENER)["http/ingress"]
    assert filters(listener) == ["http_connection_manager"]
    manager = listener["filterChains"][0]["filters"][0]["typedConfig"]
    assert manager["rds"]["routeConfigName"] == "original-dst/ingress/http"
    names = [item["name"] for item in manager["httpFilters"]]
    assert names == ["parser-0", "envoy.filters.http.router"]
    for name, route in parsed(built, ROUTES).items():
        assert name == route["virtualHosts"][0]["routes"][0]["route"]["cluster"]


def test_connections_outlive_their_redirects() -> None:
    built = build(NODE, [])
    assert not built[LISTENER]
    kept = ("original-dst", "original-dst/ingress")
    assert list(built[CLUSTER]) == [f"{name}{kind}" for name in kept for kind in ("", "/http")]
    assert list(built[ROUTES]) == [f"{name}/http" for name in kept]


def test_secrets_are_named_and_their_content_is_sds_s(secrets: list[TlsSecret], pem: Path) -> None:
    tls = replace(TO_CACHES, terminating="front", originating="back")
    built = build(NODE, [tls], [CACHES], secrets)
    assert list(built[SECRET]) == ["back", "front"], "and not the one that nobody names"
    key = (pem / "key.pem").read_bytes()
    for url in (CLUSTER, LISTENER, ENDPOINTS, ROUTES):
        assert all(key not in item.body for item in built[url].values())
    assert key in built[SECRET]["front"].body
    renewed = [replace(secrets[0], certificate=secrets[0].certificate + b"\n"), *secrets[1:]]
    again = build(NODE, [tls], [CACHES], renewed)
    assert [url for url in built if again[url] != built[url]] == [SECRET]
    assert "private" not in repr(secrets[0]).replace("private_key=", "")
    assert key.splitlines()[1].decode() not in repr(built)


def test_the_same_arguments_give_the_same_bytes(secrets: list[TlsSecret]) -> None:
    tls = replace(TO_CACHES, port=10004, terminating="front", originating="back")
    items = [R2D2, HTTP, TO_CACHES, tls]
    first = build(NODE, items, [CACHES], secrets)
    for order in permutations(items):
        again = build(NODE, order, [CACHES], reversed(secrets))
        assert {u: list(r.items()) for u, r in again.items()} == {
            u: list(r.items()) for u, r in first.items()
        }


def test_another_redirect_leaves_the_others_as_they_are() -> None:
    few, more = build(NODE, [R2D2]), build(NODE, [R2D2, BOTH, HTTP])
    for url, items in few.items():
        for name, item in items.items():
            assert more[url][name] == item


@pytest.mark.parametrize(
    ("redirects", "message"),
    [
        ([R2D2, replace(R2D2, port=10009)], "two redirects are 'r2d2/egress'"),
        ([R2D2, replace(BOTH, port=10000)], "at port 10000"),
        ([replace(R2D2, upstream="none")], "there is no upstream 'none'"),
        ([replace(R2D2, terminating="none")], "there is no secret 'none'"),
        ([replace(R2D2, originating="back")], "terminate that too"),
        ([replace(R2D2, parser="a/b")], "no name may have a slash"),
    ],
)
def test_contradictions(
    redirects: Sequence[Redirect], message: str, secrets: list[TlsSecret]
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(NODE, redirects, [CACHES], secrets)


def test_without_transparency_an_upstream_is_needed() -> None:
    with pytest.raises(ConfigError, match="name an upstream"):
        build(EMBEDDED, [R2D2])


def test_unusable_secrets(tmp_path: Path, pem: Path) -> None:
    text, big = tmp_path / "text", tmp_path / "big"
    text.write_text("no PEM")
    big.write_bytes(b"-----BEGIN " + bytes(1 << 20))
    for path, message in (
        (tmp_path / "none", "not a regular file"),
        (tmp_path, "not a regular file"),
        (text, "not PEM"),
        (big, "larger than"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_secret("s", trusted_ca=path)
    with pytest.raises(ConfigError, match="either"):
        read_secret("s")
    with pytest.raises(ConfigError, match="come together"):
        read_secret("s", certificate=pem / "cert.pem")
    with pytest.raises(ConfigError, match="either"):
        read_secret(
            "s",
            certificate=pem / "cert.pem",
            private_key=pem / "key.pem",
            trusted_ca=pem / "cert.pem",
        )


# -- Envoy's own opinion -----------------------------------------------------------------


def check(built: Built, folder: Path) -> None:
    for document in documents(built, folder):
        assert refused(document, folder) == ""


PARSERS = ("r2d2", "memcache", "cassandra", "kafka")


def test_envoy_takes_every_parser_in_every_direction(tmp_path: Path) -> None:
    redirects = [
        Redirect(parser, direction, 10000 + 10 * p + d)
        for p, parser in enumerate(PARSERS)
        for d, direction in enumerate(Direction)
    ]
    check(build(NODE, redirects), tmp_path)
    marked = replace(NODE, transparency=Transparency(listener_mark=0x100), concurrency=4)
    check(build(marked, redirects[:1]), tmp_path)


def test_envoy_takes_upstreams_and_tls(tmp_path: Path, secrets: list[TlsSecret]) -> None:
    redirects = [
        TO_CACHES,
        replace(TO_CACHES, port=10010, terminating="front"),
        replace(TO_CACHES, port=10011, terminating="front", originating="back"),
        replace(R2D2, port=10012, terminating="front", originating="back"),
    ]
    check(build(NODE, redirects, [CACHES], secrets), tmp_path)


def test_envoy_takes_http(tmp_path: Path, secrets: list[TlsSecret]) -> None:
    redirects = [
        HTTP,
        replace(HTTP, direction=Direction.BOTH, port=10010),
        replace(HTTP, port=10011, upstream="caches"),
        replace(HTTP, port=10012, terminating="front", originating="back"),
        replace(HTTP, port=10013, upstream="caches", originating="other"),
    ]
    check(build(NODE, redirects, [CACHES], secrets), tmp_path)


def test_envoy_is_a_judge(tmp_path: Path) -> None:
    """It would say no: to a parser that nobody has, and to a route without a cluster."""
    bad = list(documents(build(NODE, [replace(R2D2, parser="r2d3")]), tmp_path))
    assert "r2d3" in refused(bad[0], tmp_path)
    built = dict(build(NODE, [HTTP]))
    built[CLUSTER] = {}
    assert "original-dst/http" in refused(list(documents(built, tmp_path))[1], tmp_path)
