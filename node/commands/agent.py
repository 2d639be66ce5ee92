"""``proxylib agent``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from node.console import Console
from node.stopping import MAX_WAIT, Stopped, stop_on_signals
from node.systemd.notify import Notifier
from proxylib.errors import ProxylibError

_PATH = click.Path(path_type=Path)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each setting."""
    for name, metavar, text in reversed(_OPTIONS):
        kind = _PATH if metavar in ("DIR", "PATH") else click.STRING
        command = click.option(f"--{name}", metavar=metavar, type=kind, default=None, help=text)(
            command
        )
    return command


_OPTIONS = (
    ("state-dir", "DIR", "Where state is kept over restarts."),
    ("run-dir", "DIR", "Where the sockets are."),
    ("socket", "PATH", "The REST API's socket [default: proxylib.sock in the run-dir]."),
    ("socket-group", "GROUP", "The group that may use the sockets, beside their owner."),
    ("xds-socket", "PATH", "The control server's socket [default: xds.sock in the run-dir]."),
    ("access-log", "PATH", "The access log's socket [default: access_log.sock in the run-dir]."),
    ("policy-dir", "DIR", "Policy files, in force as long as they are in it."),
    (
        "enable-policy",
        "MODE",
        "When a direction is closed: default (a policy says so), always, never.",
    ),
    ("policy-audit-mode", "BOOL", "true: log what would be denied, and deny nothing."),
    ("secrets-dir", "DIR", "The secrets that policies name: NAMESPACE/NAME."),
    (
        "upstream",
        "IP:PORT",
        "Where redirects lead, from plain listeners [default: transparent ones, to where a "
        "connection was meant to go].",
    ),
    ("etcd", "HOST:PORT,...", "The etcd that keeps the identities of all nodes."),
    ("node-name", "NAME", "What this node is called [default: the host's name]."),
    ("node-ip", "ADDR", "This node's own address [default: the one it speaks from]."),
    ("proxy-ports", "RANGE", "The ports that redirects may use [default: 10000-20000]."),
    (
        "datapath",
        "KIND",
        "veth: programs at the endpoints' links (root); none; auto: veth with the first endpoint "
        "that has an interface, where that works.",
    ),
    ("bpf-root", "DIR", "Where maps are pinned [default: /sys/fs/bpf/proxylib]."),
    ("bpf-policy-map-max", "N", "Most entries of one endpoint's policy [default: 16384]."),
    ("bpf-ct-global-max", "N", "Connections that are remembered [default: 524288]."),
    ("bpf-ipcache-max", "N", "Prefixes whose identity is known [default: 512000]."),
    (
        "monitor-aggregation",
        "LEVEL",
        "How much of running connections is reported: none (most), low, medium, maximum.",
    ),
    (
        "envoy",
        "auto|none|PATH",
        "The Envoy to start when the first redirect exists [default: ours, with datapath veth].",
    ),
    ("envoy-concurrency", "N", "Envoy's worker threads [default: 1]."),
    (
        "envoy-drain-time",
        "SECONDS",
        "How long an Envoy that is replaced goes on serving [default: 60].",
    ),
)


@click.command("agent")
@click.option("--config", type=_PATH, metavar="FILE", help="Settings, as one YAML mapping.")
@click.option("--config-dir", type=_PATH, metavar="DIR", help="Settings, one file per key.")
@click.option("--check-config", is_flag=True, help="Print the settings in force, and end.")
@click.option("--json", "as_json", is_flag=True, help="What happens as JSON lines on stdout.")
@_settings
def command(
    config: Path | None,
    config_dir: Path | None,
    check_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """The daemon of a node: its policies and endpoints, for every Envoy of it.

    It serves policies to proxies (xDS), reads what they log, and is spoken to by
    'proxylib policy', 'proxylib endpoint' and the others over its REST API. What it is
    told survives it: it may be killed at any moment.

    A setting is a flag (--policy-dir), a variable (PROXYLIB_POLICY_DIR), a file of that
    name in --config-dir, or a key (policy-dir) in --config; the first of these counts.
    """
    from node.agent.config import load_config
    from node.agent.daemon import run

    console = Console(as_json=as_json)
    _log_to(console)
    settings = load_config(flags, config=config, config_dir=config_dir)
    if check_config:
        click.echo(json.dumps(settings.settings(), indent=2))
        return
    manager = Notifier()
    with suppress(Stopped), stop_on_signals(), run(settings) as node, manager.serving():
        text = f"ready at {settings.api_path}, revision {node.repository.state.revision}"
        manager.status(text)
        console.event(
            "ready",
            text,
            {"socket": str(settings.api_path), "revision": node.repository.state.revision},
            "good",
        )
        said = ""
        while True:
            time.sleep(MAX_WAIT)
            try:
                node.repository.resolve_redirects()
            except ProxylibError as error:
                if str(error) != said:
                    said = str(error)
                    console.event("redirects", said, {}, "error")
            manager.alive()
    console.event("stopped", "stopped", {"exit_status": 0})


class _Handler(logging.Handler):
    """What our modules log is told on the console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        role = "error" if record.levelno >= logging.ERROR else "warning"
        text = self.format(record)
        self._console.event(
            "log",
            text,
            {"level": record.levelname.lower()},
            role if record.levelno >= logging.WARNING else "dim",
        )


def _log_to(console: Console) -> None:
    for name in ("node", "xds", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if name != "uvicorn.error" else logging.ERROR)
        logger.handlers[:] = [_Handler(console)]
        logger.propagate = False
