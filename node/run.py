"""One proxy, all of it: Envoy with a parser, the control server, the access log.

`Proxy` is a context manager; what it starts it ends, whatever happens::

    with Proxy(ProxyConfig(parser, listen, upstream), on_entries=show) as proxy:
        proxy.wait()

It needs no root.  Everything it makes is in one private temporary folder.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Self

from node import bootstrap
from node.address import Address, check_listen
from node.envoy import EnvoyProcess, check_release, describe, find_envoy, find_library
from node.errors import EnvoyDied, SetupError
from node.folder import private_folder
from node.parsers import ParserChoice
from node.policies import PolicyServer
from node.reloading import CodeWatcher
from node.stopping import MAX_WAIT
from proxylib.accesslog import AccessLogServer
from proxylib.proto.accesslog_pb2 import LogEntry

POLICY_TIMEOUT = 10.0
"""Seconds the library may take to put the first policy in force."""

MAX_CONNECTIONS = 50_000
"""Most accepted connections at a time, if the process may have that many descriptors."""

UPSTREAM_TIMEOUT = 1.0
"""Seconds to wait for the upstream when we look whether anybody is there."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the proxy itself.

    kind: listening, upstream, rules, envoy-log, ready, ... (docs of the command run).
    role: how much it matters: dim, good, warning, error.
    """

    kind: str
    message: str
    role: str = "dim"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What to run.

    listen: port 0 takes a free one. policies: files, or folders of them. access_log: the
    socket of a consumer that somebody else runs; None: entries come to
    `on_entries`. egress: the policy is the clients' own, not the upstream's.
    watch: take up edits of the files. record: keep what passes. codec: HTTP that Envoy
    itself decodes, judged in its HTTP filter; None: the parser gets bytes. secrets:
    folder of the header values that HTTP rules name. control: where the library's
    control socket is to be; None: in the private folder. reload: take up edits of the
    parser's code. debug: full tracebacks, and breakpoint() waits for somebody.
    """

    parser: ParserChoice
    listen: Address
    upstream: Address
    policies: tuple[Path, ...] = ()
    endpoints: Path | None = None
    access_log: Path | None = None
    admin: Address | None = None
    concurrency: int = 1
    envoy: Path | None = None
    envoy_log_level: str = "warning"
    egress: bool = False
    watch: bool = True
    sandbox: Mapping[str, object] = field(default_factory=dict)
    """Keys of proxylib.sandbox.settings."""
    record: bootstrap.RecordConfig | None = None
    codec: bootstrap.Codec | None = None
    secrets: Path | None = None
    control: Path | None = None
    reload: bool = False
    debug: bool = False


class Proxy:
    """A running proxy, inside its ``with`` block.

    on_event, on_entries: called from threads of ours, and must not block for long.
    Entering raises NodeError (or PolicyError, for a document) if it cannot run.
    """

    def __init__(
        self,
        config: ProxyConfig,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        on_entries: Callable[[Sequence[LogEntry]], None] = lambda entries: None,
    ) -> None:
        self.config = config
        self._on_event = on_event
        self._on_entries = on_entries
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Envoy's process id."""
        return self.envoy.pid

    def wait(self, timeout: float | None = None) -> None:
        """Return after `timeout` seconds; raise EnvoyDied as soon as Envoy has ended."""
        deadline = inf if timeout is None else time.monotonic() + timeout
        while not self.envoy.wait(min(MAX_WAIT, max(0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
        what = f"Envoy died ({describe(self.envoy.returncode)})"
        raise EnvoyDied(self.envoy.obituary(what))

    def _start(self, stack: ExitStack) -> None:
        config = self.config
        binary = find_envoy(config.envoy)
        find_library()
        release = check_release(binary)
        listen, upstream = config.listen.resolve(), config.upstream.resolve()
        check_listen(listen)
        if config.admin is not None:
            check_listen(config.admin.resolve())
        self.folder = stack.enter_context(private_folder())
        self.policy = stack.enter_context(
            PolicyServer(
                self.folder / "xds.sock",
                policies=config.policies,
                endpoints=config.endpoints,
                parser=config.parser.name,
                destination=upstream,
                egress=config.egress,
                watch=config.watch,
                on_event=self._event,
            )
        )
        log_path = config.access_log or self.folder / "access_log.sock"
        if config.access_log is None:
            stack.enter_context(_LogReader(log_path, self._on_entries))
        else:
            _check_consumer(log_path, self._event)
        admin = config.admin.resolve() if config.admin else self.folder / "admin.sock"
        self.control = (config.control or self.folder / "control.sock").absolute()
        document = self.folder / "envoy.json"
        document.write_text(
            bootstrap.to_json(
                bootstrap.build(
                    bootstrap.BootstrapConfig(
                        bootstrap.FilterConfig(
                            parser=config.parser.name,
                            xds_path=self.folder / "xds.sock",
                            access_log_path=log_path.absolute(),
                            node_id=f"run-{os.getpid()}",
                            ingress=not config.egress,
                            destination=str(upstream),
                            parser_modules=config.parser.modules,
                            record=config.record,
                            sandbox=self._sandbox(),
                            secrets_path=config.secrets and config.secrets.absolute(),
                            control_path=self.control,
                        ),
                        listen=listen,
                        upstream=upstream,
                        admin=admin,
                        concurrency=config.concurrency,
                        max_connections=_max_connections(),
                        codec=config.codec,
                    )
                )
            )
        )
        _check_upstream(upstream, self._event)
        self.envoy = stack.enter_context(
            EnvoyProcess(
                binary,
                document,
                admin,
                concurrency=config.concurrency,
                log_level=config.envoy_log_level,
                on_log=self._envoy_line,
            )
        )
        self.envoy.wait_ready()
        self.address = self.envoy.listeners()[bootstrap.LISTENER]
        self._event(
            "listening",
            f"parser {config.parser.name} at {self.address}, in front of {config.upstream}"
            f" (Envoy {release}, pid {self.pid})",
            listen=str(self.address),
            upstream=str(upstream),
            parser=config.parser.name,
            envoy=release,
            pid=self.pid,
        )
        self.policy.wait_in_force(POLICY_TIMEOUT)
        if config.reload:
            stack.enter_context(CodeWatcher(config.parser.name, self.control, self._event))
        self._event("ready", "ready", "good", listen=str(self.address), pid=self.pid)

    def _sandbox(self) -> Mapping[str, object]:
        chosen = dict(self.config.sandbox)
        if self.config.debug:
            chosen["debug"] = str(self.folder / "debug.sock")
        return chosen

    def _envoy_line(self, line: str) -> None:
        if line.startswith(bootstrap.CONNECT_FAILURE):
            reason = line.removeprefix(bootstrap.CONNECT_FAILURE).strip()
            self._event("upstream", f"upstream {self.config.upstream}: {reason}", "error")
        else:
            self._event("envoy-log", f"envoy: {line}")

    def _event(self, kind: str, message: str, role: str = "dim", **data: Any) -> None:
        self._on_event(Event(kind, message, role, data))


class _LogReader:
    """Reads the access log in a thread, until its block ends and all is read."""

    def __init__(self, path: Path, on_entries: Callable[[Sequence[LogEntry]], None]) -> None:
        self._server = AccessLogServer(path)
        self._on_entries = on_entries
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Envoy has ended before: what it wrote is in the socket's queue.
        self._stopping.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        while True:
            stopping = self._stopping.is_set()
            entries = self._server.read(timeout=0 if stopping else 0.2)
            if entries:
                self._on_entries(entries)
            elif stopping:
                return


Report = Callable[..., None]


def _check_upstream(upstream: Address, report: Report) -> None:
    try:
        socket.create_connection((upstream.host, upstream.port), UPSTREAM_TIMEOUT).close()
    except OSError as error:
        report(
            "upstream",
            f"nothing answers at the upstream {upstream} ({error}); "
            "clients will be disconnected until it does",
            "warning",
        )


def _check_consumer(path: Path, report: Report) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path.absolute()))
        except OSError as error:
            report(
                "access-log",
                f"nobody reads the access log at {path} ({error.strerror or error}); "
                f"start 'proxylib accesslog {path}'",
                "warning",
            )


def _max_connections() -> int:
    """Half of the descriptors that Envoy may have: one for each side of a connection."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    if most_files < _SPARE_FILES:
        raise SetupError(
            f"only {most_files} open files are allowed; raise the limit (ulimit -Hn 4096)"
        )
    return min(MAX_CONNECTIONS, (most_files - _SPARE_FILES // 2) // 2)


_SPARE_FILES = 256
"""Descriptors that Envoy and Python need besides connections."""
