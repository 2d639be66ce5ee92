"""What the shared library calls: the Python side of native/cabi.c and native/envoy.c.

Runs only inside libproxylib. Nothing here may raise for what a peer sends; what
a host or its configuration does wrong raises, and the C side reports it.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import proxylib_native

from proxylib import commands
from proxylib.connection import Connection
from proxylib.debugging import listen
from proxylib.errors import ConfigError
from proxylib.http import HttpRule
from proxylib.http_filter import HttpFilterConfig
from proxylib.instance import Instance, InstanceTable, Parameters, parse_parameters
from proxylib.ops import FilterResult
from proxylib.registry import (
    get_parser_factory,
    load_parser_file,
    parser_names,
)
from proxylib.sandbox import OnError, Settings, breaker_of, parse_settings
from proxylib.sandbox.isolation import Worker
from proxylib.sandbox.settings import KEYS as SANDBOX_KEYS
from proxylib.tap import Recorder, recorder

log = logging.getLogger(__name__)

COLLECT_EVERY = 5.0
"""Seconds between garbage collections, which run off the data path."""

SWITCH_INTERVAL = 0.0005
"""Seconds after which a Python thread gives way to a worker that waits for the
interpreter; the default (5 ms) would show in the latency of traffic."""

ENVOY_POLICY_WAIT = 10.0
"""Seconds that Envoy's first listener may wait for its policy. It has no connections yet;
in a hot restart the Envoy before serves them meanwhile, and denying them would lose some."""

instances = InstanceTable(proxylib_native.AccessLog)


def start() -> int:
    """Called once, when Python has started. Returns 1."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="proxylib: %(levelname)s: %(message)s"
    )
    sys.setswitchinterval(SWITCH_INTERVAL)
    # Cycles are broken by hand where connections end; what is left is collected
    # between calls and not in the middle of one.
    gc.collect()
    gc.freeze()
    gc.disable()
    threading.Thread(target=_collect, name="proxylib-gc", daemon=True).start()
    return 1


def _collect() -> None:
    idle = threading.Event()
    while not idle.wait(COLLECT_EVERY):
        gc.collect()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


# The proxylib C ABI.


def open_module(params: list[tuple[bytes, bytes]], debug: bool) -> int:
    """OpenModule: the instance's number, 0 if the parameters are refused."""
    if debug:
        logging.getLogger("proxylib").setLevel(logging.DEBUG)
    try:
        return instances.open(parse_parameters([(_text(k), _text(v)) for k, v in params]))
    except (ConfigError, OSError, ValueError) as error:
        log.error("OpenModule: %s", error)
        return 0


def close_module(number: int) -> None:
    """CloseModule. Connections outlive it."""
    instances.close(number)


def new_connection(
    number: int,
    parser: bytes,
    ingress: bool,
    src_id: int,
    dst_id: int,
    src_addr: bytes,
    dst_addr: bytes,
    policy_name: bytes,
) -> Connection | FilterResult:
    """OnNewConnection: the connection, or why it is refused."""
    instance = instances.get(number)
    if instance is None:
        return FilterResult.INVALID_INSTANCE
    made = instance.connect(
        _text(parser),
        ingress=ingress,
        src_id=src_id,
        dst_id=dst_id,
        src_addr=_text(src_addr),
        dst_addr=_text(dst_addr),
        policy_name=_text(policy_name),
    )
    if isinstance(made, Connection):
        made.sends_both_ways = False
    return made


# Envoy's network filter.


@dataclass(eq=False)
class FilterConfig:
    """One listener's filter: which parser, whose policy."""

    number: int
    instance: Instance
    parser: str
    ingress: bool
    policy_name: str
    destination: str
    settings: Settings
    recorder: Recorder | None = None

    def open(self, remote: str, remote_port: int, local: str, local_port: int) -> Connection | None:
        """A connection that Envoy has accepted; None to close it at once."""
        src_addr = join_address(remote, remote_port)
        dst_addr = self.destination or join_address(local, local_port)
        dst_ip = dst_addr.rpartition(":")[0].strip("[]")
        identity = self.instance.hosts.identity
        connection = self.instance.connect(
            self.parser,
            ingress=self.ingress,
            src_id=identity(remote),
            dst_id=identity(dst_ip),
            src_addr=src_addr,
            dst_addr=dst_addr,
            policy_name=self.policy_name or (dst_ip if self.ingress else remote),
            settings=self.settings,
        )
        if isinstance(connection, FilterResult):
            log.error("%s -> %s: %s", src_addr, dst_addr, connection.name)
            return None
        if self.recorder is not None:
            # Before the policy is asked: it may put a log of its own in the place of ours.
            self.recorder.tap(connection)
        if connection.decision.denied:
            connection.log_status(f"Connection closed: {connection.decision.reason}")
            connection.close()
            return None
        return connection

    def close(self) -> None:
        """Envoy has removed the listener."""
        instances.close(self.number)


@dataclass(eq=False)
class IsolatedConfig:
    """One listener's filter whose parser is in a process of its own."""

    number: int
    instance: Instance
    parser: str
    ingress: bool
    policy_name: str
    destination: str
    settings: Settings
    worker: Worker

    def open(self, remote: str, remote_port: int, local: str, local_port: int) -> Connection | None:
        """A connection that Envoy has accepted; None to close it at once."""
        dst_addr = self.destination or join_address(local, local_port)
        # Who they are, the worker finds out: it has the policy and the identities.
        connection = self.instance.connection(
            self.parser,
            ingress=self.ingress,
            src_id=0,
            dst_id=0,
            src_addr=join_address(remote, remote_port),
            dst_addr=dst_addr,
            policy_name=self.policy_name
            or (dst_addr.rpartition(":")[0].strip("[]") if self.ingress else remote),
            settings=self.settings,
        )
        if connection is None:
            return None
        if not connection.breaker.admits():
            made = self.instance.without_parser(connection)
            return made if isinstance(made, Connection) else None
        request = json.dumps([remote, remote_port, local, local_port]).encode()
        process = self.worker.present
        connection.process, native = process, process.remote
        connection.budget = int(process.budget * 1e9)
        answer = None
        try:
            if native is not None:
                answer = native.open(request, connection.budget)
            else:
                # No panic: the breaker has counted those whose process has died.
                connection.fail(f"The process of parser {self.parser!r} is starting")
        except ConnectionError as error:
            connection.crashed(str(error))
            native = None
        if native is None:
            connection.unparsed = True
            return connection if self.settings.on_error == OnError.PASS_THROUGH else None
        if answer is None:
            return None
        connection.remote = native
        connection.remote_id, connection.batch, prefix = answer
        if self.instance.log is not None:
            connection.log = self.instance.log.stream(prefix, self.parser)
        return connection

    def close(self) -> None:
        """Envoy has removed the listener."""
        commands.isolated.remove(self)
        self.worker.close()
        instances.close(self.number)


BREAKER_OFF = 1_000_000
"""Panics that no breaker ever sees in its period: the host of a worker has it."""

FILTER_KEYS: dict[str, type | tuple[type, ...]] = {
    "parser": str,
    "xds_path": str,
    "access_log_path": str,
    "node_id": str,
    "ingress": bool,
    "policy_name": str,
    "destination": str,
    "parser_modules": list,
    "record": dict,
    "secrets_path": str,
    "control_path": str,
    **SANDBOX_KEYS,
}


def read_config(name: bytes, config: bytes) -> dict[str, Any]:
    """A listener's configuration: JSON with the keys of FILTER_KEYS, of their types.

    name: the parser's, if the configuration does not say. Raises ConfigError.
    """
    try:
        values: dict[str, Any] = json.loads(config or b"{}")
    except ValueError as error:
        raise ConfigError(f"filter_config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("filter_config is not a JSON object")
    for key, value in values.items():
        expected = FILTER_KEYS.get(key)
        if expected is None:
            raise ConfigError(f"unknown key {key!r} (known: {', '.join(FILTER_KEYS)})")
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            wanted = expected[-1] if isinstance(expected, tuple) else expected
            raise ConfigError(f"{key}: {value!r} is not a {wanted.__name__}")
    values.setdefault("parser", _text(name))
    return values


def filter_config(name: bytes, config: bytes) -> FilterConfig | IsolatedConfig:
    """What Envoy calls for each listener.

    Raises ConfigError or RegistrationError; Envoy then refuses the listener.
    """
    values = read_config(name, config)
    return isolated_config(values) if parse_settings(values).isolated else local_config(values)


def _open_instance(values: Mapping[str, Any], xds_path: str) -> tuple[int, Instance]:
    number = instances.open(
        Parameters(
            values.get("access_log_path", ""),
            xds_path,
            values.get("node_id", ""),
            values.get("secrets_path", ""),
        ),
        wait=ENVOY_POLICY_WAIT,
    )
    instance = instances.get(number)
    assert instance is not None
    return number, instance


def local_config(values: Mapping[str, Any]) -> FilterConfig:
    """A listener whose parser runs in this process."""
    settings = parse_settings(values)
    for path in values.get("parser_modules", []):
        if str(path) not in _loaded:
            load_parser_file(Path(path))
            _loaded.add(str(path))
            instances.parsers_loaded()
    parser = values["parser"]
    if get_parser_factory(parser) is None:
        raise ConfigError(f"unknown parser {parser!r} (known: {', '.join(parser_names())})")
    number, instance = _open_instance(values, values.get("xds_path", ""))
    if "control_path" in values:
        commands.serve(values["control_path"], instances)
    if settings.debug:
        listen(settings.debug)
    breaker_of(parser).configure(settings.breaker_panics, settings.breaker_period)
    return FilterConfig(
        number,
        instance,
        parser,
        values.get("ingress", True),
        values.get("policy_name", ""),
        values.get("destination", ""),
        settings,
        recorder(values["record"]) if "record" in values else None,
    )


def http_filter_config(name: bytes, config: bytes) -> HttpFilterConfig:
    """The configuration of an HTTP filter: as `filter_config`, for a parser with HTTP rules."""
    values = read_config(name, config)
    if parse_settings(values).isolated:
        raise ConfigError("isolation: an HTTP filter has no parser that could be isolated")
    common = local_config(values)
    factory = get_parser_factory(common.parser)
    if factory is None or not issubclass(factory.rule_class, HttpRule):
        common.close()
        raise ConfigError(f"parser {common.parser!r} has no HTTP rules")
    return HttpFilterConfig(
        common.instance,
        common.parser,
        common.ingress,
        common.policy_name,
        common.destination,
        common.close,
    )


def isolated_config(values: Mapping[str, Any]) -> IsolatedConfig:
    """A listener whose parser, with its policy, is in a process of its own.

    Raises ConfigError if that process refuses the configuration.
    """
    settings = parse_settings(values)
    # Here there is the log alone, and the circuit breaker.
    number, instance = _open_instance(values, "")
    inner = {
        **{key: value for key, value in values.items() if key != "control_path"},
        "isolation": "none",
        "node_id": f"{values.get('node_id', '')}~{values['parser']}",
        "breaker_panics": BREAKER_OFF,
    }
    try:
        worker = Worker(inner, instance.log)
    except ConfigError:
        instances.close(number)
        raise
    if "control_path" in values:
        commands.serve(values["control_path"], instances)
    breaker_of(values["parser"]).configure(settings.breaker_panics, settings.breaker_period)
    config = IsolatedConfig(
        number,
        instance,
        values["parser"],
        values.get("ingress", True),
        values.get("policy_name", ""),
        values.get("destination", ""),
        settings,
        worker,
    )
    commands.isolated.append(config)
    return config


_loaded: set[str] = set()
"""Parser files that this process has imported."""


def join_address(ip: str, port: int) -> str:
    """``ip:port``, or ``[ip6]:port``."""
    try:
        bracket = ip_address(ip).version == 6
    except ValueError:
        bracket = False
    return f"[{ip}]:{port}" if bracket else f"{ip}:{port}"
