"""``proxylib-cni``: containers become endpoints of the agent as a runtime makes and ends them.

It stands in a chain behind a plugin that makes a routed veth (ptp).  ADD hands the container to
the agent and passes the result on as it came; the agent finds the veth by the namespace.  A
runtime may call twice, too late or not at all: ADD takes over what is there, DEL is done when
there is nothing, GC removes what nobody knows any more.

Without the agent no container may start that should have a policy: ADD says "try again later".
DEL succeeds: the veth is the other plugin's to remove, and an agent that starts forgets
containers whose veth is gone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from node.client import AgentClient, AgentFailed, NotThere
from node.cni.protocol import (
    MAX_CONFIG,
    VERSIONS,
    CniError,
    Code,
    Request,
    attachment_id,
    command_of,
    read_config,
    read_request,
    version_of,
)
from node.errors import NodeError, SetupError

SOCKET = "/run/proxylib/proxylib.sock"
"""The agent's socket, where the configuration names none."""

STARTED = ("ready", "waiting-for-proxy")
"""The states of an endpoint whose policy is in force, or what it needs is closed."""

PATIENCE = 10.0
"""Seconds that CHECK waits for a proxy that starts: it may come right after ADD."""

_PAUSE = 0.2

POD_NAMESPACE = "k8s:io.kubernetes.pod.namespace"
"""The label of a pod's namespace (xds.labels.POD_NAMESPACE, which takes long to import)."""

ATTACHMENT = "cni-attachment-id"
"""What the API calls our name of a container's interface."""


def main() -> None:
    """Entry point of the console script."""
    status, output = run(os.environ, sys.stdin.buffer)
    sys.stdout.write(output)
    sys.stdout.flush()
    sys.exit(status)


def run(environment: Mapping[str, str], given: BinaryIO) -> tuple[int, str]:
    """The exit status and the output that answer a runtime's request."""
    version = VERSIONS[-1]
    try:
        command = command_of(environment)
        config = read_config(given.read(MAX_CONFIG + 1))
        version = version_of(config)
        request = read_request(command, environment, config)
        result = _COMMANDS[command](request)
    except CniError as error:
        return 1, json.dumps(error.to_json(version)) + "\n"
    except NodeError as error:
        return 1, json.dumps(_as_cni(error).to_json(version)) + "\n"
    except Exception as error:
        broken = CniError(Code.BROKEN, f"a fault of proxylib-cni's own: {error!r}")
        return 1, json.dumps(broken.to_json(version)) + "\n"
    return 0, "" if result is None else json.dumps(result) + "\n"


def _add(request: Request) -> Mapping[str, Any]:
    addresses = request.addresses()
    assert request.result is not None
    wanted = _wanted(request, addresses)
    client = _agent(request)
    for endpoint in _ours(client, request):
        if _is(endpoint, request, addresses):
            client.call(
                "PUT", "endpoint", endpoint["id"], "labels", json={"labels": wanted["labels"]}
            )
            break
        _delete(client, endpoint["id"])
    else:
        made = client.call("POST", "endpoint", json=wanted)
        if made["state"] not in STARTED:
            _delete(client, made["id"])
            raise CniError(
                Code.TRY_AGAIN_LATER, f"the endpoint is {made['state']}", made.get("reason", "")
            )
    return {**request.result, "cniVersion": request.version}


def _del(request: Request) -> None:
    client = _agent(request)
    try:
        for endpoint in _ours(client, request):
            _delete(client, endpoint["id"])
    except SetupError as error:
        # There is no agent: it forgets the container when it starts.
        print(f"proxylib-cni: {error}", file=sys.stderr)


def _check(request: Request) -> None:
    addresses = request.addresses()
    client = _agent(request)
    deadline = time.monotonic() + PATIENCE
    while True:
        endpoints = _ours(client, request)
        if not endpoints:
            raise CniError(Code.UNKNOWN_CONTAINER, f"there is no endpoint {request.attachment}")
        endpoint = endpoints[0]
        if endpoint["state"] != "waiting-for-proxy" or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    number, state = endpoint["id"], endpoint["state"]
    if state != "ready":
        raise CniError(Code.REFUSED, f"endpoint {number} is {state}", endpoint.get("reason", ""))
    if not _is(endpoint, request, addresses):
        details = json.dumps({key: endpoint.get(key) for key in ("attachment", "networking")})
        raise CniError(Code.REFUSED, f"endpoint {number} is not where prevResult has it", details)


def _gc(request: Request) -> None:
    valid = {attachment_id(request.network, *pair) for pair in request.valid}
    client = _agent(request)
    for endpoint in client.call("GET", "endpoint"):
        name = endpoint["external-identifiers"].get(ATTACHMENT, "")
        if name.startswith(f"{request.network}:") and name not in valid:
            _delete(client, endpoint["id"])


def _status(request: Request) -> None:
    try:
        health = _agent(request).call("GET", "healthz")
    except NodeError as error:
        raise CniError(Code.NOT_AVAILABLE, "the agent is not there", str(error)) from error
    if health["state"] == "Failure":
        failed = [part for part in health["components"] if part["state"] == "Failure"]
        raise CniError(Code.NOT_AVAILABLE, "the agent has a failure", json.dumps(failed))


def _version(request: Request) -> Mapping[str, Any]:
    return {"cniVersion": request.version, "supportedVersions": list(VERSIONS)}


_COMMANDS = {
    "ADD": _add,
    "DEL": _del,
    "CHECK": _check,
    "GC": _gc,
    "STATUS": _status,
    "VERSION": _version,
}


def _agent(request: Request) -> AgentClient:
    return AgentClient(Path(request.socket or SOCKET))


def _wanted(request: Request, addresses: list[str]) -> dict[str, Any]:
    """The endpoint of a container, as the API takes it."""
    namespace = request.arguments.get("K8S_POD_NAMESPACE", "")
    labels = {**request.labels, **({POD_NAMESPACE: namespace} if namespace else {})}
    return {
        "netns": request.netns,
        "inner": request.interface,
        "addresses": addresses,
        "labels": [f"{name}={value}" if value else name for name, value in labels.items()],
        "mode": "sidecar" if request.sidecar else "node",
        "sockmap": request.sockmap,
        "external-identifiers": {
            ATTACHMENT: request.attachment,
            "container-id": request.container,
            "k8s-namespace": namespace,
            "k8s-pod-name": request.arguments.get("K8S_POD_NAME", ""),
        },
    }


def _ours(client: AgentClient, request: Request) -> list[dict[str, Any]]:
    found = client.call("GET", "endpoint", params={ATTACHMENT: request.attachment})
    assert isinstance(found, list)
    return found


def _is(endpoint: Mapping[str, Any], request: Request, addresses: list[str]) -> bool:
    """Whether an endpoint is the container as it is now."""
    if endpoint["state"] == "disconnected":
        return False
    attachment = endpoint.get("attachment") or {}
    has = {a for pair in endpoint["networking"]["addressing"] for a in pair.values() if a}
    return (attachment.get("netns"), attachment.get("inner"), has) == (
        request.netns,
        request.interface,
        set(addresses),
    )


def _delete(client: AgentClient, number: int) -> None:
    with suppress(NotThere):
        client.call("DELETE", "endpoint", number)


def _as_cni(error: NodeError) -> CniError:
    """What an error of the agent's, or of the way to it, is for a runtime."""
    text = str(error)
    if isinstance(error, SetupError):
        return CniError(Code.TRY_AGAIN_LATER, "the agent is not there", text)
    if isinstance(error, AgentFailed):
        return CniError(Code.TRY_AGAIN_LATER, "the agent cannot do it now", text)
    return CniError(Code.REFUSED, text)
