"""``proxylib bpf``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from node.commands.remote import F, agent, remote, show_json
from node.errors import NodeError
from node.tables import show, table

_ENDPOINTS = click.argument(
    "endpoints", nargs=-1, type=click.IntRange(1, 65535), metavar="[ENDPOINT]..."
)
_DEFAULT_ROOT = Path("/sys/fs/bpf/proxylib")

_ROOT = click.option(
    "--bpf-root",
    "root",
    type=click.Path(path_type=Path),
    envvar="PROXYLIB_BPF_ROOT",
    metavar="DIR",
    help="Where the agent pins its maps [default: $PROXYLIB_BPF_ROOT, else what a running agent "
    f"says, else {_DEFAULT_ROOT}].",
)


def _list(function: F) -> F:
    """The options of every list."""
    return _ROOT(remote(function))


@click.group("bpf")
def command() -> None:
    """What the eBPF programs know, read from their maps: also without an agent.

    Needs root. Labels are there if an agent answers.
    """


@command.group("policy")
def policy() -> None:
    """The L4 policy of each endpoint."""


@policy.command("list")
@_ENDPOINTS
@_list
def policy_list(
    endpoints: tuple[int, ...], root: Path | None, socket_path: Path | None, as_json: bool
) -> None:
    """List the policy entries of endpoints, or of all.

    Of entries that are about a packet, those to its peer's identity and to identity 0 (whoever
    it is), the narrowest of each count, and of these two the greater verdict: deny, redirect,
    allow. What nothing is said about is denied.
    """
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = list(pinned.policies(maps, endpoints))
    if as_json:
        show_json(rows)
        return
    labels = _labels(socket_path)
    header = ("ENDPOINT", "POLICY", "DIRECTION", "IDENTITY", "LABELS (source:key[=value])",
              "PORT/PROTO", "PROXY PORT")  # fmt: skip
    cells = [
        (
            str(row["endpoint"]),
            _verdict(row),
            row["direction"],
            str(row["identity"]),
            labels.get(row["identity"], []) if row["identity"] else ["(everybody)"],
            _port_text(row),
            _proxy_text(row),
        )
        for row in rows
    ]
    show(table(header, cells))


@command.group("ct")
def ct() -> None:
    """Connections, as the programs track them."""


@ct.command("list")
@_ENDPOINTS
@_list
def ct_list(
    endpoints: tuple[int, ...], root: Path | None, socket_path: Path | None, as_json: bool
) -> None:
    """List connections, one line each, as endpoints (all, or those given) see them.

    OUT: the endpoint made it. expires: in so many seconds. With the agent's setting
    bpf-conntrack-accounting, packets and bytes to the endpoint (Rx) and from it (Tx).
    """
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = pinned.conntrack(maps, endpoints)
        if as_json:
            show_json(list(rows))
            return
        lines = map(_connection, rows)
        while chunk := list(islice(lines, 1000)):
            click.echo("\n".join(chunk))


@command.group("proxy")
def proxy() -> None:
    """Connections that go through Envoy."""


@proxy.command("list")
@_ENDPOINTS
@_list
def proxy_list(
    endpoints: tuple[int, ...], root: Path | None, socket_path: Path | None, as_json: bool
) -> None:
    """List the connections that were redirected to Envoy, and at which proxy port it took them.

    One between two endpoints of this node is in the list of the one whose link it came by.
    """
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = [row for row in pinned.conntrack(maps, endpoints) if row["proxy_port"]]
    if as_json:
        show_json(rows)
        return
    header = ("ENDPOINT", "DIRECTION", "SOURCE", "DESTINATION", "IDENTITY", "PROXY PORT", "EXPIRES")
    cells = [
        (
            str(row["endpoint"]),
            row["direction"],
            _address(row["source"]),
            _address(row["destination"]),
            _identities(row),
            str(row["proxy_port"]),
            f"{row['expires']:.0f}s",
        )
        for row in rows
    ]
    show(table(header, cells))


@command.group("ipcache")
def ipcache() -> None:
    """Whose addresses are."""


@ipcache.command("list")
@_list
def ipcache_list(root: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """List prefixes and their identities; the longest that has an address counts."""
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = list(pinned.ipcache(maps))
    if as_json:
        show_json(rows)
        return
    labels = _labels(socket_path)
    header = ("IP PREFIX/ADDRESS", "IDENTITY", "LABELS (source:key[=value])")
    cells = [
        (row["prefix"], str(row["identity"]), " ".join(labels.get(row["identity"], ())))
        for row in rows
    ]
    show(table(header, cells))


@command.group("endpoint")
def endpoint() -> None:
    """Endpoints that have programs."""


@endpoint.command("list")
@_list
def endpoint_list(root: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """List endpoints as the programs know them. Slot: of the policy; 0 denies everything."""
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = list(pinned.endpoints(maps))
    if as_json:
        show_json(rows)
        return
    header = ("ENDPOINT", "IDENTITY", "SLOT", "IFINDEX", "IPv4", "IPv6")
    show(table(header, [[str(value) for value in row.values()] for row in rows]))


@command.group("metrics")
def metrics() -> None:
    """What the programs have counted."""


@metrics.command("list")
@_ENDPOINTS
@_list
def metrics_list(
    endpoints: tuple[int, ...], root: Path | None, socket_path: Path | None, as_json: bool
) -> None:
    """List packets and bytes by endpoint, direction and what became of them."""
    from node.monitor import pinned

    with pinned.pinned(_root(root, socket_path)) as maps:
        rows = list(pinned.counters(maps, endpoints))
    if as_json:
        show_json(rows)
        return
    header = ("ENDPOINT", "REASON", "DIRECTION", "PACKETS", "BYTES")
    names = ("endpoint", "reason", "direction", "packets", "bytes")
    show(table(header, [[str(row[name]) for name in names] for row in rows]))


def _root(root: Path | None, socket_path: Path | None) -> Path:
    """Where the maps are pinned."""
    if root is not None:
        return root
    try:
        with agent(socket_path) as client:
            return Path(client.call("GET", "config")["bpf-root"])
    except NodeError:
        return _DEFAULT_ROOT


def _labels(socket_path: Path | None) -> Mapping[int, Sequence[str]]:
    """The labels of identities, if an agent says them."""
    try:
        with agent(socket_path) as client:
            return {item["id"]: item["labels"] for item in client.call("GET", "identity")}
    except NodeError:
        return {}


def _verdict(row: Mapping[str, Any]) -> str:
    verdict, would = row["verdict"], row["would"]
    audit = would in ("none", "deny") and verdict in ("allow", "redirect")
    return f"{verdict} (audit: {would})" if audit else str(verdict)


def _port_text(row: Mapping[str, Any]) -> str:
    if not row["protocol"]:
        return "ANY"
    return f"{row['ports'] or 'ANY'}/{row['protocol']}"


def _proxy_text(row: Mapping[str, Any]) -> str:
    """The proxy port, and that of the proxy for both ends."""
    if row["verdict"] != "redirect" and not row["proxy_port"]:
        return ""
    both = f" (both {row['proxy_port_both']})" if row["proxy_port_both"] else ""
    return f"{row['proxy_port'] or 'NONE'}{both}"


def _connection(row: Mapping[str, Any]) -> str:
    by = f" ProxyPort={row['proxy_port']}" if row["proxy_port"] else ""
    counted = "".join(
        f" {text}={row[name]}"
        for text, name in (
            ("RxPackets", "rx_packets"),
            ("RxBytes", "rx_bytes"),
            ("TxPackets", "tx_packets"),
            ("TxBytes", "tx_bytes"),
        )
        if row[name] is not None
    )
    return (
        f"{row['protocol']} {'IN' if row['direction'] == 'ingress' else 'OUT'} "
        f"{_address(row['source'])} -> {_address(row['destination'])} endpoint={row['endpoint']} "
        f"expires={row['expires']:.0f}{counted} "
        f"Flags=[{' '.join(row['flags'])}] identity={_identities(row)}{by}"
    )


def _address(end: Mapping[str, Any]) -> str:
    host = end["address"] or "?"
    return f"[{host}]:{end['port']}" if ":" in host else f"{host}:{end['port']}"


def _identities(row: Mapping[str, Any]) -> str:
    return f"{row['source']['identity']}->{row['destination']['identity']}"
