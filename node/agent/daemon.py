"""The daemon: one agent of one node, from its first lock to its last socket.

Order matters: what was in force before is published before anybody can subscribe, so
that an agent that starts again takes nothing away from Envoys that run.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from bpf.schema import Flags
from node.agent.config import AgentConfig, group_id
from node.agent.datapath import NodeDatapath
from node.agent.decisions import Decisions
from node.agent.folder import PolicyFolder
from node.agent.links import NodeLinks
from node.agent.node import Node
from node.agent.opening import (
    TRACES,
    acceleration,
    node_addresses,
    opener,
    own_addresses,
    unavailable,
)
from node.agent.proxies import Proxies
from node.agent.redirects import NodeRedirects
from node.agent.repository import Repository
from node.agent.secrets import TlsSecrets
from node.agent.store import Store
from node.errors import SetupError
from node.monitor.ends import Ends
from node.monitor.l7 import publish
from node.monitor.watch import Watch
from xds.ads.ports import ProxyPorts
from xds.ads.resources import DOWNSTREAM_MARK, NodeConfig, Transparency
from xds.control import ControlServer
from xds.etcd import EtcdStore
from xds.identity import Identities
from xds.listening import check_socket
from xds.roster import Mode
from xds.store import SqliteStore

log = logging.getLogger(__name__)


@contextmanager
def run(config: AgentConfig) -> Iterator[Node]:
    """An agent that serves as long as the block lasts.

    Raises NodeError or ProxylibError, and leaves nothing behind, if it cannot start.
    """
    # Not before it is needed: the API's libraries take half a second to load.
    from node.api.app import make_app
    from node.api.server import ApiServer

    with ExitStack() as stack:
        _directory(config.run_dir, 0o755)
        _directory(config.state_dir, 0o700)
        stack.enter_context(only_one(config.state_dir / "lock"))
        for path in (config.api_path, config.xds_path, config.access_log_path):
            check_socket(path)
        group = None if config.socket_group is None else group_id(config.socket_group)
        registry = CollectorRegistry()
        store = Store(config.state_dir / "state.db")
        stack.callback(store.close)
        local = SqliteStore(config.state_dir / "identities.db")
        shared = None
        if config.etcd is not None:
            shared = EtcdStore(config.etcd.split(","), config.node_name)
        identities = Identities(shared or local, local=local)
        stack.callback(identities.close)
        control = ControlServer(
            config.xds_path,
            identities=identities,
            mode=Mode(config.enable_policy, config.policy_audit_mode),
            socket_mode=0o600 if group is None else 0o660,
            socket_group=group,
            on_changes=lambda changes: links.sync(changes),  # noqa: PLW0108 - made below
        )
        stack.callback(control.stop)
        first, last = config.proxy_ports
        redirects = NodeRedirects(
            NodeConfig(
                config.xds_path,
                config.access_log_path,
                config.node_name,
                transparency=None
                if config.upstream
                else Transparency(listener_mark=DOWNSTREAM_MARK),
                concurrency=config.envoy_concurrency,
                secrets_path=config.secrets_dir,
            ),
            ProxyPorts(config.state_dir / "proxy-ports.json", first=first, last=last),
            control.server,
            TlsSecrets(config.secrets_dir),
            config.upstream_server,
            one_pass=config.upstream is None and config.datapath != "none",
        )
        ends = Ends(control.engine)
        counted = Flags.ACCOUNTING if config.bpf_conntrack_accounting else Flags.NONE
        monitor = Watch(ends, traces=TRACES[config.monitor_aggregation], always=counted)
        datapath = NodeDatapath(
            control.engine,
            redirects,
            monitor.watching(opener(config, stack)),
            unavailable=unavailable(config),
            addresses=own_addresses,
        )
        if config.datapath == "veth":
            datapath.require()
        elif config.datapath == "auto" and config.upstream is None and datapath.unavailable:
            log.warning("no data path: %s", datapath.unavailable)
        links = NodeLinks(
            datapath,
            Proxies(config),
            acceleration(config),
            redirects,
            lambda number, found: repository.set_attachment(number, found),  # noqa: PLW0108
            lambda endpoint: repository.end_endpoint(endpoint),  # noqa: PLW0108
        )
        stack.callback(links.close)
        stack.callback(monitor.closed)
        if shared is not None:
            shared.start(control.identities_changed, control.renumber)
        repository = Repository(
            store,
            control,
            redirects,
            links,
            watched=config.policy_dir is not None,
            own=partial(node_addresses, config),
        )
        links.end_others()
        folder = None
        if config.policy_dir is not None:
            folder = stack.enter_context(PolicyFolder(config.policy_dir, repository))
        show = partial(publish, monitor.hub, ends)
        decisions = stack.enter_context(
            Decisions(config.access_log_path, registry, group=group, show=show)
        )
        node = Node(config, repository, control, decisions, redirects, links, monitor, folder)
        node.tell_own_addresses()
        control.start()
        stack.enter_context(ApiServer(make_app(node, registry), config.api_path, group=group))
        # Before the API ends, or it would wait for those who watch.
        stack.callback(monitor.hub.close)
        yield node


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock of a state directory. Raises SetupError if another agent does."""
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        full = "; make room on its disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise SetupError(f"{path}: cannot be made: {error.strerror}{full}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(lock, 32).decode("ascii", "replace").strip()
            raise SetupError(
                f"another agent{f' (pid {owner})' if owner else ''} has the state directory "
                f"{path.parent}; stop it, or give this one another --state-dir and --run-dir"
            ) from error
        # The number is for others' errors only: on a full disk a cleanup goes on without.
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{path}: cannot be made: {error.strerror}") from error
