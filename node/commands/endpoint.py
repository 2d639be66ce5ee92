"""``proxylib endpoint``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from node.commands.remote import agent, remote, show_json
from node.tables import mark, safe, show, table

_NUMBER = click.argument("number", type=click.IntRange(1, 65535), metavar="ID")
_LABEL = "LABEL is source:key=value, such as k8s:app=nginx; the source may be left out."


_ENFORCEMENT = click.option(
    "--enforcement",
    type=click.Choice(("default", "always", "never")),
    help="When a direction is closed: a policy says so, in any case, or never.",
)


def _absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """A path as the agent has to have it: it is somewhere else."""
    return os.path.abspath(value) if value and "/" in value else value or ""


_NAMED = re.compile(r"([a-z0-9-]+)=([0-9]{1,5})(?:/(TCP|UDP|SCTP))?")


def _named_ports(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[dict[str, Any]]:
    ports = []
    for value in values:
        match = _NAMED.fullmatch(value)
        if match is None:
            raise click.BadParameter(f"{value!r} is not NAME=PORT, such as http=80")
        ports.append({"name": match[1], "port": int(match[2]), "protocol": match[3] or "TCP"})
    return ports


@click.group("endpoint")
def command() -> None:
    """The endpoints of this node: who has which address and labels."""


@command.command("list")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="Those that have it.")
@remote
def list_command(labels: tuple[str, ...], socket_path: Path | None, as_json: bool) -> None:
    """List the endpoints: enforcement, identity, labels, addresses, state."""
    with agent(socket_path) as client:
        endpoints = client.call("GET", "endpoint", params={"label": list(labels)})
    if as_json:
        show_json(endpoints)
    else:
        show(endpoint_table(endpoints))


@command.command("get")
@_NUMBER
@remote
def get(number: int, socket_path: Path | None, as_json: bool) -> None:
    """Print one endpoint as JSON, as a CiliumEndpoint's status has it."""
    with agent(socket_path) as client:
        show_json(client.call("GET", "endpoint", number))


@command.command("add", epilog=_LABEL)
@click.option(
    "--netns",
    callback=_absolute,
    metavar="NAME|PATH",
    help="Its network namespace, by the name that 'ip netns' has, or by path.",
)
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="A process in its namespace.")
@click.option(
    "--interface", default="", metavar="VETH", help="The node's end of its veth [default: the one]."
)
@click.option(
    "--inner", default="", metavar="NAME", help="The end inside, where there are several."
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="Its address, an IPv4 and an IPv6 one for both [default: what its veth has].",
)
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="A label; several times.")
@click.option("--id", "number", type=click.IntRange(1, 65535), help="Its number [default: next].")
@click.option(
    "--port",
    "ports",
    multiple=True,
    callback=_named_ports,
    metavar="NAME=PORT[/PROTOCOL]",
    help="What policies may call a port; several times.",
)
@_ENFORCEMENT
@click.option("--audit", is_flag=True, help="Log what would be denied, and deny nothing.")
@click.option(
    "--sidecar", is_flag=True, help="Judge it by an Envoy of its own, inside its namespace."
)
@click.option(
    "--sockmap", is_flag=True, help="Move bytes between sockets of this node past the TCP stack."
)
@click.option("--container-id", default="", metavar="ID", help="What a runtime calls it.")
@click.option("--k8s-namespace", default="", metavar="NAME", help="Its pod's namespace.")
@click.option("--k8s-pod-name", default="", metavar="NAME", help="Its pod's name.")
@remote
def add(
    netns: str,
    pid: int | None,
    interface: str,
    inner: str,
    addresses: tuple[str, ...],
    labels: tuple[str, ...],
    number: int | None,
    ports: list[dict[str, Any]],
    enforcement: str | None,
    audit: bool,
    sidecar: bool,
    sockmap: bool,
    container_id: str,
    k8s_namespace: str,
    k8s_pod_name: str,
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Add an endpoint, and print its number.

    With --netns, --pid or --interface, the agent finds the endpoint's veth, and judges what
    passes there. With --address alone it knows who has the address, and no more.

    \b
      proxylib endpoint add --netns blue --label k8s:app=nginx
      proxylib endpoint add --pid 4711 --label k8s:app=nginx --sidecar
      proxylib endpoint add --interface lxc1 --label k8s:app=nginx
    """
    if not (netns or pid or interface or addresses):
        raise click.UsageError("say where it is: --netns, --pid or --interface; or its --address")
    external = {
        "container-id": container_id,
        "k8s-namespace": k8s_namespace,
        "k8s-pod-name": k8s_pod_name,
    }
    request: dict[str, Any] = {
        "addresses": list(addresses),
        "labels": list(labels),
        "external-identifiers": external,
        "ports": ports,
        "enforcement": enforcement or "default",
        "audit": audit,
    }
    where = {"netns": netns, "pid": pid, "interface": interface, "inner": inner, "id": number}
    how = {"mode": "sidecar" if sidecar else "", "sockmap": sockmap}
    request |= {key: value for key, value in (where | how).items() if value}
    with agent(socket_path) as client:
        endpoint = client.call("POST", "endpoint", json=request)
    if endpoint["state"] not in ("ready", "waiting-for-proxy"):
        said = f"endpoint {endpoint['id']} is {endpoint['state']}: {endpoint.get('reason', '')}"
        click.echo(f"{mark('proxylib: warning: ', 'warning')}{safe(said)}", err=True)
    if as_json:
        show_json(endpoint)
    else:
        click.echo(endpoint["id"])


@command.command("labels", epilog=_LABEL)
@_NUMBER
@click.option("--add", "added", multiple=True, metavar="LABEL", help="A label more.")
@click.option("--delete", "deleted", multiple=True, metavar="LABEL", help="A label less.")
@click.option("--set", "wanted", multiple=True, metavar="LABEL", help="In place of all.")
@remote
def labels_command(
    number: int,
    added: tuple[str, ...],
    deleted: tuple[str, ...],
    wanted: tuple[str, ...],
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Print an endpoint's labels, or change them first: it gets another identity."""
    if wanted and (added or deleted):
        raise click.UsageError("--set stands for all labels: give no --add and no --delete then")
    with agent(socket_path) as client:
        if wanted:
            request: dict[str, Any] = {"labels": list(wanted)}
            endpoint = client.call("PUT", "endpoint", number, "labels", json=request)
        elif added or deleted:
            request = {"add": list(added), "remove": list(deleted)}
            endpoint = client.call("PATCH", "endpoint", number, "labels", json=request)
        else:
            endpoint = client.call("GET", "endpoint", number)
    if as_json:
        show_json(endpoint["identity"])
    else:
        show("\n".join(endpoint["identity"]["labels"]))


@command.command("config")
@_NUMBER
@_ENFORCEMENT
@click.option("--audit/--no-audit", default=None, help="Log what would be denied; deny nothing.")
@click.option(
    "--sockmap/--no-sockmap",
    default=None,
    help="Move bytes between sockets of this node past the TCP stack.",
)
@remote
def config(
    number: int,
    enforcement: str | None,
    audit: bool | None,
    sockmap: bool | None,
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Print how an endpoint's policies are enforced, or change it first."""
    change = {"enforcement": enforcement, "audit": audit, "sockmap": sockmap}
    wanted = {key: value for key, value in change.items() if value is not None}
    with agent(socket_path) as client:
        if wanted:
            endpoint = client.call("PATCH", "endpoint", number, json=wanted)
        else:
            endpoint = client.call("GET", "endpoint", number)
    policy, attachment = endpoint["policy"], endpoint.get("attachment") or {}
    sidecar = attachment.get("mode") == "sidecar"
    accelerated = attachment.get("sockmap", False)
    if as_json:
        show_json({**policy, "sidecar": sidecar, "sockmap": accelerated})
        return
    pairs = [
        ("enforcement", policy.get("mode", "default")),
        ("audit", str(policy.get("audit", False)).lower()),
        ("sidecar", str(sidecar).lower()),
        ("sockmap", str(accelerated).lower()),
    ]
    show("\n".join(f"{key}={value}" for key, value in pairs))


@command.command("delete")
@click.argument("numbers", nargs=-1, required=True, type=click.IntRange(1, 65535), metavar="ID...")
@remote
def delete(numbers: tuple[int, ...], socket_path: Path | None, as_json: bool) -> None:
    """Delete endpoints: their addresses are nobody's then."""
    with agent(socket_path) as client:
        for number in numbers:
            client.call("DELETE", "endpoint", number)
    if as_json:
        show_json(list(numbers))


def endpoint_table(endpoints: list[dict[str, Any]]) -> str:
    """The endpoints as ``cilium endpoint list`` shows them; and where they are attached."""
    attached = any(endpoint.get("attachment") for endpoint in endpoints)
    header = (
        "ENDPOINT",
        ("POLICY (ingress)", "ENFORCEMENT"),
        ("POLICY (egress)", "ENFORCEMENT"),
        "IDENTITY",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        *(("INTERFACE",) if attached else ()),
        "STATUS",
    )
    rows = [
        (
            str(endpoint["id"]),
            _enforcement(endpoint["policy"], "ingress"),
            _enforcement(endpoint["policy"], "egress"),
            str(endpoint["identity"]["id"]),
            endpoint["identity"]["labels"],
            [a.get("ipv6", "") for a in endpoint["networking"]["addressing"]],
            [a.get("ipv4", "") for a in endpoint["networking"]["addressing"]],
            *((_interface(endpoint.get("attachment")),) if attached else ()),
            _state(endpoint),
        )
        for endpoint in endpoints
    ]
    return table(header, rows)


def _enforcement(policy: dict[str, Any], direction: str) -> str:
    """As Cilium writes it."""
    if policy.get("audit"):
        return "Disabled (Audit)"
    return "Enabled" if policy[direction] else "Disabled"


def _interface(attachment: dict[str, Any] | None) -> str:
    if not attachment:
        return ""
    said = ["sidecar"] if attachment.get("mode") == "sidecar" else []
    said += ["sockmap"] if attachment.get("sockmap") else []
    how = f" ({', '.join(said)})" if said else ""
    return f"{attachment['interface']}{how}"


def _state(endpoint: dict[str, Any]) -> str | list[str]:
    reason = endpoint.get("reason")
    return [endpoint["state"], reason] if reason else endpoint["state"]
