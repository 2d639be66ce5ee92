"""``proxylib policy import``, ``get``, ``delete``, ``wait`` and ``selectors``: by the agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from node.commands.remote import agent, remote, show_json
from node.errors import UsageError
from node.tables import mark, show, table

_NAMESPACE = click.option("--namespace", default="", metavar="NAME", help="Of this namespace.")
_KIND = click.option("--kind", default="", metavar="KIND", help="Of this kind.")
_LABELS = click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Rules that have it; several times."
)
_TIMEOUT = click.option(
    "--timeout", default=30.0, show_default=True, type=click.FloatRange(0, 600), help="Seconds."
)


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--wait", is_flag=True, help="Return when every proxy enforces it.")
@_TIMEOUT
@remote
def import_command(
    files: tuple[str, ...], wait: bool, timeout: float, socket_path: Path | None, as_json: bool
) -> None:
    """Put policy documents in force, in place of those of the same names.

    A FILE has YAML or JSON documents; it may be a directory of such files, or - for
    standard input. All that the files say is put in force together, or nothing of it.

    Prints the revision. Exit status 1: --wait, and not in force in time.
    """
    texts = [item for name in files for item in _texts(name)]
    files_json = [{"name": name, "text": text} for name, text in texts]
    with agent(socket_path) as client:
        change = client.call("PUT", "policy", "files", json={"files": files_json})
        waited = _wait(client, change["revision"], timeout) if wait else None
    if as_json:
        show_json(change | ({"waited": waited} if waited is not None else {}))
    else:
        for warning in change["warnings"]:
            click.echo(f"{mark('warning:', 'warning')} {_place(warning)}", err=True)
        click.echo(f"Revision: {change['revision']}")
    _end(waited, as_json)


@click.command("get")
@click.argument("name", default="")
@_NAMESPACE
@_KIND
@_LABELS
@remote
def get(
    name: str,
    namespace: str,
    kind: str,
    labels: tuple[str, ...],
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """List the policies in force, or print those called NAME, as documents.

    Exit status 1: there is none of this NAME.
    """
    params = {"name": name, "namespace": namespace, "kind": kind, "label": list(labels)}
    with agent(socket_path) as client:
        found = client.call("GET", "policy", params=params)
    if as_json:
        show_json(found)
    elif name:
        click.echo(_documents(found["policies"]), nl=False)
    else:
        rows = [
            (
                policy["namespace"],
                policy["name"],
                policy["kind"],
                str(policy["revision"]),
                policy["file"] or "api",
                _user_labels(policy),
            )
            for policy in found["policies"]
        ]
        header = ("NAMESPACE", "NAME", "KIND", "REVISION", "SOURCE", "LABELS")
        show(table(header, rows))
        for problem in found["problems"]:
            click.echo(f"{mark('not in force:', 'error')} {_place(problem)}", err=True)
        click.echo(f"Revision: {found['revision']}")
    if name and not found["policies"]:
        if not as_json:
            click.echo(f"there is no policy {name!r}", err=True)
        raise SystemExit(1)


@click.command("delete")
@click.argument("name", default="")
@_NAMESPACE
@_KIND
@_LABELS
@click.option("--all", "everything", is_flag=True, help="Every policy but those of policy-dir.")
@remote
def delete(
    name: str,
    namespace: str,
    kind: str,
    labels: tuple[str, ...],
    everything: bool,
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Delete the policy NAME, the rules that have all labels, or (--all) everything.

    Prints the revision. Exit status 1: there is no such policy.
    """
    if sum((bool(name), bool(labels), everything)) != 1:
        raise click.UsageError("say what to delete: a NAME, --label LABEL, or --all")
    with agent(socket_path) as client:
        if name:
            params: dict[str, Any] = {"namespace": namespace, "kind": kind}
            change = client.call("DELETE", "policy", name, params=params)
        else:
            params = {"all": "true"} if everything else {"label": list(labels)}
            change = client.call("DELETE", "policy", params=params)
    if as_json:
        show_json(change)
    else:
        click.echo(f"Revision: {change['revision']}")


@click.command("wait")
@click.argument("revision", type=click.IntRange(0))
@click.option("--nodes", default=0, type=click.IntRange(0), help="At least so many proxies.")
@_TIMEOUT
@remote
def wait_command(
    revision: int, nodes: int, timeout: float, socket_path: Path | None, as_json: bool
) -> None:
    """Return when every connected Envoy and library instance enforces REVISION.

    Exit status 1: the time is up; what is missing is told.
    """
    with agent(socket_path) as client:
        waited = _wait(client, revision, timeout, nodes)
    if as_json:
        show_json(waited)
    else:
        click.echo(f"Revision {revision}: {len(waited['nodes'])} nodes")
    _end(waited, as_json)


@click.command("selectors")
@remote
def selectors(socket_path: Path | None, as_json: bool) -> None:
    """List the selectors that the policies use, and the identities that they select."""
    with agent(socket_path) as client:
        found = client.call("GET", "policy", "selectors")
    if as_json:
        show_json(found)
        return
    rows = [
        (item["selector"], str(item["users"]), ", ".join(map(str, item["identities"])))
        for item in found
    ]
    show(table(("SELECTOR", "USERS", "IDENTITIES"), rows))


def _wait(client: Any, revision: int, timeout: float, nodes: int = 0) -> dict[str, Any]:
    params = {"timeout": timeout, "nodes": nodes}
    waited = client.call("GET", "policy", "revisions", revision, params=params, timeout=timeout)
    assert isinstance(waited, dict)
    return waited


def _end(waited: dict[str, Any] | None, as_json: bool) -> None:
    """Exit status 1, and why, if a revision was waited for and is not in force."""
    if waited is None or waited["reached"]:
        return
    if not as_json:
        missing = waited["waiting"] or {"": f"only {len(waited['nodes'])} nodes are connected"}
        for node, reason in missing.items():
            click.echo(f"{mark('not in force', 'error')} {node}: {reason}", err=True)
    raise SystemExit(1)


def _texts(name: str) -> Iterator[tuple[str, str]]:
    """The name and the text of each file that `name` stands for."""
    from xds.source import DocumentError, read_file

    if name == "-":
        yield "stdin", sys.stdin.read()
        return
    path = Path(name)
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml", ".json"))
        if not files:
            raise UsageError(f"{path}: no file in it ends in .yaml, .yml or .json")
    for file in files:
        try:
            yield str(file), read_file(file)
        except DocumentError as error:
            raise UsageError(str(error)) from error


def _documents(policies: list[dict[str, Any]]) -> str:
    """The documents as YAML, as one could import them again."""
    import yaml

    documents = [policy["document"] for policy in policies]
    return str(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True))


def _user_labels(policy: dict[str, Any]) -> list[str]:
    """Labels that somebody gave, not those that every rule has."""
    labels = dict.fromkeys(label for rule in policy["rules"] for label in rule)
    return [label for label in labels if not label.startswith("k8s:io.cilium.k8s.policy.")]


def _place(problem: dict[str, Any]) -> str:
    where = problem["file"]
    if problem["line"]:
        where += f":{problem['line']}:{problem['column']}"
    parts = [part for part in (where, problem["path"]) if part]
    return f"{': '.join(parts)}: {problem['message']}"
