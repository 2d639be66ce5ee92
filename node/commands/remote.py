"""What the commands that speak to an agent share: its socket, --json, and the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from node.client import AgentClient

F = TypeVar("F", bound=Callable[..., Any])

_SOCKET = click.option(
    "--socket",
    "socket_path",
    # Who may not use it hears that of the client, with what to do.
    type=click.Path(path_type=Path, readable=False),
    envvar="PROXYLIB_SOCKET",
    metavar="PATH",
    help="The agent's REST socket [default: $PROXYLIB_SOCKET, else /run/proxylib/proxylib.sock, "
    "or below $XDG_RUNTIME_DIR for a user].",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")


def remote(command: F) -> F:
    """Options --socket and --json."""
    return _SOCKET(_JSON(command))


def agent(socket_path: Path | None) -> AgentClient:
    """The agent at `socket_path`, or at the usual place."""
    from node.agent.config import default_socket
    from node.client import AgentClient

    return AgentClient(socket_path or default_socket())


def show_json(value: Any) -> None:
    """One JSON document on stdout, without control characters."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not text.replace("\n", "").isprintable():
        text = json.dumps(value, indent=2)
    # JSON's own escapes leave one control character of ASCII.
    click.echo(text.replace("\x7f", "\\u007f"))
