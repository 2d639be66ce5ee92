"""``proxylib accesslog``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from node.address import Address
from node.console import Console
from node.errors import UsageError
from node.metrics import counting
from node.stopping import MAX_WAIT, Stopped, stop_on_signals
from proxylib.accesslog import AccessLogServer


def default_path() -> Path:
    """Where the log is read if nobody says otherwise, below the user's runtime folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime or "/run") / "proxylib" / "access_log.sock"


@click.command("accesslog")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--json/--text",
    "as_json",
    default=None,
    help="Form of a line [default: text on a terminal, JSON elsewhere].",
)
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Go on when the last proxy has gone.",
)
@click.option(
    "--metrics",
    metavar="ADDR",
    help="Serve Prometheus metrics, counted from the log, over HTTP (127.0.0.1:9964).",
)
@click.option("--group", is_flag=True, help="Let the socket file's group connect too (mode 0660).")
def command(
    path: Path | None, as_json: bool | None, follow: bool, metrics: str | None, group: bool
) -> None:
    """Read the decisions that proxies log to the socket PATH, one per line.

    This command listens; proxies connect when they have something to say (give
    `proxylib run` the same path with --access-log).  Without PATH it is
    $XDG_RUNTIME_DIR/proxylib/access_log.sock.

    A slow reader never slows traffic down: what it misses is counted by the
    proxy and reported here in a line of its own. Ctrl-C ends it, exit status 0.
    """
    where = None if metrics is None else Address.parse(metrics, any_port=True)
    server = AccessLogServer(path or _default_socket(), group=group)
    if as_json is None:
        as_json = not sys.stdout.isatty()
    console = Console(as_json=as_json)
    seen_client = False

    def tell(url: str) -> None:
        click.echo(f"proxylib: metrics at {url}", err=True)

    with (
        suppress(Stopped),
        stop_on_signals(),
        server,
        counting(where, console.entries, tell) as entries,
    ):
        click.echo(f"proxylib: reading the access log at {server.path}", err=True)
        while follow or server.clients or not seen_client:
            entries(server.read(timeout=MAX_WAIT))
            seen_client = seen_client or server.clients > 0


def _default_socket() -> Path:
    path = default_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path.parent}: cannot be made ({error.strerror}); name the socket: "
            "proxylib accesslog PATH"
        ) from error
    return path
