"""What runtimes ask, well and badly: the request that it is, or the error code for it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cni.protocol import (
    MAX_CONFIG,
    VALID_ATTACHMENTS,
    CniError,
    Code,
    Request,
    command_of,
    read_config,
    read_request,
)

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "veth1", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/blue"},
    ],
    "ips": [
        {"interface": 1, "address": "10.22.0.5/24", "gateway": "10.22.0.1"},
        {"interface": 1, "address": "fd22::5/64"},
        {"interface": 0, "address": "10.22.0.1/24"},
    ],
}
CONFIG: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "proxylib-cni",
    "prevResult": RESULT,
}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def read(command: str = "ADD", *, env: dict[str, str] | None = None, **config: Any) -> Request:
    environment = {**ENVIRONMENT, "CNI_COMMAND": command, **(env or {})}
    given = read_config(json.dumps({**CONFIG, **config}).encode())
    return read_request(command_of(environment), environment, given)


def refused(code: Code, command: str = "ADD", **more: Any) -> CniError:
    with pytest.raises(CniError) as error:
        read(command, **more)
    assert error.value.code is code
    # What is printed is JSON: nothing of a request reaches a terminal as it came.
    assert json.dumps(error.value.to_json("1.0.0")).isprintable()
    return error.value


def test_a_container() -> None:
    request = read(
        env={"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx-0"},
        socket="/run/other.sock",
        sidecar=True,
    )
    assert request.attachment == "pods:c0ffee:eth0"
    assert request.netns == "/run/netns/blue"
    assert request.addresses() == ["10.22.0.5", "fd22::5"]
    assert request.arguments["K8S_POD_NAME"] == "nginx-0"
    assert (request.socket, request.sidecar, request.sockmap) == ("/run/other.sock", True, False)


def test_labels_of_three_places() -> None:
    request = read(
        labels=["k8s:app=nginx", "k8s:tier=front", "bare"],
        args={"cni": {"labels": [{"key": "k8s:tier", "value": "back"}]}},
        runtimeConfig={"labels": [{"key": "env", "value": "prod=1"}, "bare=now"]},
    )
    assert request.labels == {
        "k8s:app": "nginx",
        "k8s:tier": "back",
        "bare": "now",
        "env": "prod=1",
    }


def test_addresses_of_interfaces_that_are_not_numbered() -> None:
    """As an IPAM plugin's result has it, and before 1.0.0 those of other plugins."""
    request = read(prevResult={"ips": [{"version": "4", "address": "10.22.0.5/24"}]})
    assert request.addresses() == ["10.22.0.5"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions(version: str) -> None:
    assert read("DEL", cniVersion=version).version == version
    assert read("VERSION", cniVersion=version).version == version


def test_commands_of_later_versions() -> None:
    refused(Code.INCOMPATIBLE_VERSION, "CHECK", cniVersion="0.3.1")
    refused(Code.INCOMPATIBLE_VERSION, "GC", cniVersion="1.0.0")
    error = refused(Code.INCOMPATIBLE_VERSION, "STATUS", cniVersion="1.0.0")
    assert error.details == "supported: 1.1.0"
    assert read("STATUS", cniVersion="1.1.0").container == ""


def test_delete_needs_little() -> None:
    request = read("DEL", env={"CNI_NETNS": ""}, prevResult=None)
    assert (request.netns, request.result) == ("", None)


def test_garbage_is_named() -> None:
    valid = [{"containerID": "c0ffee", "ifname": "eth0"}]
    request = read("GC", cniVersion="1.1.0", **{VALID_ATTACHMENTS: valid})
    assert request.valid == {("c0ffee", "eth0")}
    assert read("GC", cniVersion="1.1.0", **{VALID_ATTACHMENTS: []}).valid == frozenset()
    for wrong in (None, {}, "all", [{"containerID": "c0ffee"}], ["c0ffee"], [7]):
        refused(Code.INVALID_CONFIG, "GC", cniVersion="1.1.0", **{VALID_ATTACHMENTS: wrong})


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (Code.INCOMPATIBLE_VERSION, {"cniVersion": "0.2.0"}),
        (Code.INCOMPATIBLE_VERSION, {"cniVersion": None}),
        (Code.INCOMPATIBLE_VERSION, {"cniVersion": ["1.0.0"]}),
        (Code.UNSUPPORTED_FIELD, {"label": ["k8s:app=nginx"]}),
        (Code.INVALID_CONFIG, {"name": ""}),
        (Code.INVALID_CONFIG, {"name": "a:b"}),
        (Code.INVALID_CONFIG, {"name": 7}),
        (Code.INVALID_CONFIG, {"socket": 7}),
        (Code.INVALID_CONFIG, {"sidecar": "yes"}),
        (Code.INVALID_CONFIG, {"labels": "k8s:app=nginx"}),
        (Code.INVALID_CONFIG, {"labels": [""]}),
        (Code.INVALID_CONFIG, {"labels": [["k8s:app=nginx"]]}),
        (Code.INVALID_CONFIG, {"labels": ["reserved:host"]}),
        (Code.INVALID_CONFIG, {"labels": [f"k{n}" for n in range(65)]}),
        (Code.INVALID_CONFIG, {"runtimeConfig": [1]}),
        (Code.INVALID_CONFIG, {"runtimeConfig": {"labels": [{"key": "a", "valeu": "b"}]}}),
        (Code.INVALID_CONFIG, {"args": {"cni": {"labels": [{"key": 1, "value": "b"}]}}}),
        (Code.DECODING, {"prevResult": [1]}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_CONTAINERID": ""}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_CONTAINERID": "../x"}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_IFNAME": "e" * 16}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_IFNAME": "a/b"}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_IFNAME": ".."}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_NETNS": ""}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_ARGS": "nonsense"}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_COMMAND": "\x1b[2J"}}),
        (Code.INVALID_ENVIRONMENT, {"env": {"CNI_COMMAND": ""}}),
    ],
)
def test_what_is_refused(code: Code, more: dict[str, Any]) -> None:
    refused(code, **more)


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"interfaces": 7},
        {"interfaces": ["eth0"]},
        {"interfaces": [], "ips": [{"interface": 3, "address": "10.0.0.1/24"}]},
        {"ips": [{"address": None}], "interfaces": [{}]},
    ],
)
def test_results_without_an_address(result: Any) -> None:
    with pytest.raises(CniError):
        read(prevResult=result).addresses()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (MAX_CONFIG + 1), b'"x"']
)
def test_no_configuration(text: bytes) -> None:
    with pytest.raises(CniError) as error:
        read_config(text)
    assert error.value.code is Code.DECODING


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*CONFIG, "args", "runtimeConfig", "labels", "socket"]), _JSON),
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]),
)
def test_any_json_is_a_request_or_refused(changes: dict[str, Any], command: str) -> None:
    with suppress(CniError):
        read(command, **changes).addresses()
