"""``proxylib agent``."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.commands.remote import agent, remote, show_json
from node.console import Console
from node.errors import SetupError
from node.stopping import MAX_WAIT, Stopped, stop_on_signals
from node.systemd.notify import Notifier
from proxylib.errors import ProxylibError

if TYPE_CHECKING:
    from node.agent.config import AgentConfig

_PATH = click.Path(path_type=Path)


Command = Callable[..., None]


def _settings(*names: str) -> Callable[[Command], Command]:
    """The files of settings, and an option for each of these settings (none: for all)."""

    def decorate(command: Command) -> Command:
        for name, metavar, text in reversed(_OPTIONS):
            if not names or name in names:
                kind = _PATH if metavar in ("DIR", "PATH") else click.STRING
                option = click.option(f"--{name}", metavar=metavar, type=kind, help=text)
                command = option(command)
        for option in (_CONFIG_DIR, _CONFIG):
            command = option(command)
        return command

    return decorate


_CONFIG = click.option("--config", type=_PATH, metavar="FILE", help="Settings, one YAML mapping.")
_CONFIG_DIR = click.option(
    "--config-dir", type=_PATH, metavar="DIR", help="Settings, one file per key."
)


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
    ("bpf-cache", "DIR", "Compiled programs [default: bpf-cache in the state-dir]."),
    ("bpf-policy-map-max", "N", "Most entries of one endpoint's policy [default: 16384]."),
    ("bpf-ct-global-max", "N", "Connections that are remembered [default: 524288]."),
    ("bpf-ipcache-max", "N", "Prefixes whose identity is known [default: 512000]."),
    ("bpf-conntrack-accounting", "BOOL", "true: count packets and bytes of each connection."),
    (
        "monitor-aggregation",
        "LEVEL",
        "What the monitor traces of connections: none (every packet), low (those to endpoints), "
        "medium (first packet, first reply, end), maximum (nothing).",
    ),
    (
        "sockmap",
        "auto|none",
        "auto: endpoints that ask for it send bytes past the TCP stack; none: nobody does.",
    ),
    (
        "envoy",
        "auto|none|PATH",
        "The Envoy to start when the first redirect exists [default: ours, with datapath veth].",
    ),
    ("envoy-concurrency", "N", "Envoy's worker threads [default: 1]."),
    (
        "envoy-max-heap",
        "MIB",
        "Of an Envoy's heap, beyond which it takes no more connections [default: no limit].",
    ),
    (
        "envoy-drain-time",
        "SECONDS",
        "In which an Envoy that is replaced ends its connections [default: 600].",
    ),
    (
        "envoy-parent-shutdown-time",
        "SECONDS",
        "After which an Envoy that is replaced ends itself [default: 900].",
    ),
)


@click.group("agent", invoke_without_command=True)
@click.option(
    "--check-config",
    is_flag=True,
    help="Print the settings in force, say what the data path lacks here, and end.",
)
@click.option("--json", "as_json", is_flag=True, help="What happens as JSON lines on stdout.")
@_settings()
@click.pass_context
def command(
    context: click.Context,
    /,
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

    SIGTERM ends the agent and nothing else: the programs at the endpoints' links and Envoy
    go on by the last state, and the next agent takes them over. 'proxylib agent cleanup'
    takes them away. SIGHUP has a new Envoy take over.
    """
    if context.invoked_subcommand is not None:
        if config or config_dir or check_config or any(v is not None for v in flags.values()):
            name = context.invoked_subcommand
            raise click.UsageError(f"settings come after the command: proxylib agent {name} ...")
        return
    from node.agent.config import load_config
    from node.agent.daemon import run
    from node.agent.places import check_places

    console = Console(as_json=as_json)
    _log_to(console)
    settings = load_config(flags, config=config, config_dir=config_dir)
    if check_config:
        click.echo(json.dumps(settings.settings(), indent=2))
        check_places(settings)
        _check_machine(settings)
        return
    manager = Notifier()
    with (
        suppress(Stopped),
        stop_on_signals(),
        _reloads() as reload,
        run(settings) as node,
        manager.serving(),
    ):
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
            if reload.is_set():
                reload.clear()
                node.links.proxies.reload()
            try:
                node.tick()
            except ProxylibError as error:
                if str(error) != said:
                    said = str(error)
                    console.event("redirects", said, {}, "error")
            manager.alive()
    console.event("stopped", "stopped", {"exit_status": 0})


@command.command("cleanup")
@click.option("--json", "as_json", is_flag=True, help="What was taken away, as a JSON list.")
@click.option(
    "--force",
    is_flag=True,
    help="Even if it was another network namespace's, which is no more.",
)
@_settings("state-dir", "run-dir", "bpf-root")
def cleanup(
    config: Path | None, config_dir: Path | None, as_json: bool, force: bool, **flags: Any
) -> None:
    """Take away what an agent has left in the kernel, and end its Envoys.

    That is: programs, maps, routes and rules; kernel settings are put back. From then on
    endpoints speak to each other unjudged. Policies and endpoints stay on the disk, for the
    next agent. The agent must be stopped before. Run it where the agent ran, in the same
    network namespace, with the same settings.
    """
    from node.agent.cleanup import clean
    from node.agent.config import load_config

    done = clean(load_config(flags, config=config, config_dir=config_dir), force=force)
    if as_json:
        click.echo(json.dumps(done))
    else:
        click.echo("\n".join(f"removed: {line}" for line in done) or "nothing was left")


@command.command("reload-envoy")
@remote
def reload_envoy(socket_path: Path | None, as_json: bool) -> None:
    """Have new Envoys take over from those that run, with no connection lost.

    It happens by itself when Envoy's binary or our library is another one on the disk.
    """
    with agent(socket_path) as client:
        answer = client.call("POST", "envoy", "reload")
    if as_json:
        show_json(answer)
    else:
        click.echo(f"{answer['envoys']} reloading")


def _check_machine(settings: AgentConfig) -> None:
    """Say what the data path has and lacks here. Raises SetupError if it is asked for."""
    from bpf.checks import all_checks
    from node.agent.opening import unavailable

    reason = unavailable(settings)
    if reason:
        click.echo(f"no data path: {reason}", err=True)
        return
    checks = all_checks(settings.bpf_root)
    for check in checks:
        state = "ok" if check.ok else "missing" if check.needed else "not there"
        hint = f": {check.hint}" if check.hint else ""
        click.echo(f"{state:9} {check.what}{hint}", err=True)
    if settings.datapath == "veth" and not all(check.ok for check in checks if check.needed):
        raise SetupError("datapath veth cannot work on this machine")


@contextmanager
def _reloads() -> Iterator[threading.Event]:
    """Set by SIGHUP; at a terminal that is its end, and ends us too."""
    asked = threading.Event()
    if sys.stdin is not None and sys.stdin.isatty():
        yield asked
        return
    before = signal.signal(signal.SIGHUP, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGHUP, before)


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
