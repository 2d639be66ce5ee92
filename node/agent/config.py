"""The agent's configuration: one model, and four places that it is read from.

In order of precedence: flags, the environment (``PROXYLIB_POLICY_DIR``), a directory
of one file per key (``--config-dir``, as a Kubernetes ConfigMap is mounted), a YAML file
(``--config``), and the defaults.  Keys are written with dashes (``policy-dir``) in files.
Unknown keys are errors: a setting that nobody reads protects nothing.
"""

from __future__ import annotations

import difflib
import grp
import os
import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from node.errors import UsageError
from xds.endpoints import Enforcement
from xds.source import DocumentError, read_documents, read_file

ENVIRONMENT = "PROXYLIB_"
"""What the names of environment variables begin with."""

MAX_SETTING = 4096
"""Longest value of one setting, characters; the longest path that Linux has."""

_PORTS = re.compile("([0-9]{1,5})-([0-9]{1,5})")


def default_run_dir() -> Path:
    """Where sockets are: /run/proxylib, or the user's own runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/proxylib")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Not in /tmp: whoever makes a directory there first may do with the sockets as they like.
    return Path(runtime) / "proxylib" if runtime else default_state_dir() / "run"


def default_state_dir() -> Path:
    """Where state is kept: /var/lib/proxylib, or the user's own state directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/proxylib")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "proxylib"


def default_socket() -> Path:
    """The REST API's socket: $PROXYLIB_SOCKET, or the one of an agent with the defaults."""
    named = os.environ.get(f"{ENVIRONMENT}SOCKET")
    return Path(named) if named else default_run_dir() / "proxylib.sock"


def node_address() -> str:
    """The address that this machine speaks to others from; loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a UDP socket sends nothing: it only chooses the source.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _group(text: str) -> str:
    """The name or the number of a group that exists."""
    try:
        group_id(text)
    except KeyError:
        raise ValueError(f"there is no group {text!r}") from None
    return text


def group_id(text: str) -> int:
    """The number of the group `text`, a name or a number. Raises KeyError if none is."""
    return int(text) if text.isascii() and text.isdigit() else grp.getgrnam(text).gr_gid


def _ports(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _PORTS.fullmatch(value)
    if match is None or not 0 < int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError(f"{value!r} is not a range of ports such as 10000-20000")
    return int(match[1]), int(match[2])


def _endpoints(text: str) -> str:
    for name in text.split(","):
        host, _, port = name.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise ValueError(f"{name!r} is no HOST:PORT")
    return text


def _numeric(text: str) -> str:
    """``IP:PORT``; Envoy looks up no names for it."""
    _numeric_parts(text)
    return text


def _numeric_parts(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError(f"{text!r} is no IP:PORT")
    try:
        return str(ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        raise ValueError(f"{text!r} is no IP:PORT: {host!r} is not an IP address") from None


def _address(text: str) -> str:
    """An IP address, as it is written shortest."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _envoy(text: str) -> str:
    if text in ("auto", "none") or text.startswith("/"):
        return text
    raise ValueError(f"{text!r} is not auto, none, or the whole path of a binary")


Absolute = Annotated[Path, AfterValidator(lambda path: path.absolute())]


class AgentConfig(BaseModel):
    """What an agent is told. Every field is a key in files, a variable and a flag."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=MAX_SETTING)

    state_dir: Absolute = Field(
        default_factory=default_state_dir, description="where state is kept over restarts"
    )
    run_dir: Absolute = Field(default_factory=default_run_dir, description="where the sockets are")
    socket: Absolute | None = Field(
        None, description="the REST API's socket [default: proxylib.sock in run-dir]"
    )
    socket_group: Annotated[str, AfterValidator(_group)] | None = Field(
        None, description="the group that may use the sockets, beside their owner"
    )
    xds_socket: Absolute | None = Field(
        None, description="the control server's socket [default: xds.sock in run-dir]"
    )
    access_log: Absolute | None = Field(
        None, description="the access log's socket [default: access_log.sock in run-dir]"
    )
    policy_dir: Absolute | None = Field(
        None, description="a directory of policy files, in force as long as they are there"
    )
    enable_policy: Enforcement = Field(
        "default",
        description="default: a direction is closed once a policy says so; always; never",
    )
    policy_audit_mode: bool = Field(
        False, strict=False, description="log what would be denied, and deny nothing"
    )
    secrets_dir: Absolute | None = Field(
        None, description="a directory of the secrets that policies name: NAMESPACE/NAME"
    )
    upstream: Annotated[str, AfterValidator(_numeric)] | None = Field(
        None,
        description="IP:PORT that redirects lead to, from plain listeners "
        "[default: transparent ones, to where a connection was meant to go]",
    )
    etcd: Annotated[str, AfterValidator(_endpoints)] | None = Field(
        None, description="HOST:PORT,... of the etcd that keeps the identities of all nodes"
    )
    node_name: str = Field(
        default_factory=gethostname,
        min_length=1,
        max_length=253,
        description="what this node is called",
    )
    node_ip: Annotated[str, AfterValidator(_address)] = Field(
        default_factory=node_address, max_length=45, description="this node's own address"
    )
    proxy_ports: Annotated[tuple[int, int], BeforeValidator(_ports)] = Field(
        (10000, 20000), description="the ports that redirects may use"
    )
    datapath: Literal["auto", "veth", "none"] = Field(
        "auto",
        description="veth: programs at the endpoints' links; none; "
        "auto: veth with the first endpoint that has an interface, where that works",
    )
    bpf_root: Absolute = Field(
        Path("/sys/fs/bpf/proxylib"), description="the folder of bpffs that maps are pinned in"
    )
    bpf_cache: Absolute | None = Field(
        None, description="a folder of compiled programs [default: bpf-cache in state-dir]"
    )
    bpf_policy_map_max: int = Field(
        16_384, ge=256, le=65_536, description="most entries of one endpoint's policy"
    )
    bpf_ct_global_max: int = Field(
        524_288, ge=1024, le=1 << 24, description="connections that are remembered"
    )
    bpf_ipcache_max: int = Field(
        512_000, ge=1024, le=1 << 24, description="prefixes whose identity is known"
    )
    bpf_conntrack_accounting: bool = Field(
        False, strict=False, description="count the packets and bytes of each connection"
    )
    monitor_aggregation: Literal["none", "low", "medium", "maximum"] = Field(
        "medium",
        description="of what connections do, as far as somebody watches: none: every packet; "
        "low: those to endpoints; medium: the first packet, the first reply and the end; "
        "maximum: nothing",
    )
    sockmap: Literal["auto", "none"] = Field(
        "auto",
        description="auto: endpoints that ask for it send bytes past the TCP stack, where this "
        "kernel passes the self-test; none: nobody does",
    )
    envoy: Annotated[str, AfterValidator(_envoy)] = Field(
        "auto",
        description="auto: an Envoy of ours when the first redirect exists, with datapath veth; "
        "none; or the binary to start",
    )
    envoy_concurrency: int = Field(1, ge=1, le=512, description="Envoy's worker threads")
    envoy_max_heap: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description="MiB of an Envoy's heap, beyond which it takes no more "
        "connections; 0: as many as there are",
    )
    envoy_drain_time: int = Field(
        600, ge=1, le=86_400, description="seconds in which a replaced Envoy ends its connections"
    )
    envoy_parent_shutdown_time: int = Field(
        900, ge=1, le=86_400, description="seconds after which a replaced Envoy ends itself"
    )

    @model_validator(mode="after")
    def _sockets_differ(self) -> Self:
        paths = (self.api_path, self.xds_path, self.access_log_path)
        if len(set(paths)) != len(paths):
            raise ValueError(f"the three sockets need a path each: {', '.join(map(str, paths))}")
        return self

    @model_validator(mode="after")
    def _datapath_fits(self) -> Self:
        if self.datapath == "veth" and self.upstream is not None:
            raise ValueError(
                "with upstream, redirects have plain listeners that the programs cannot redirect "
                "to: leave out upstream, or datapath veth"
            )
        return self

    @property
    def api_path(self) -> Path:
        return self.socket or self.run_dir / "proxylib.sock"

    @property
    def xds_path(self) -> Path:
        return self.xds_socket or self.run_dir / "xds.sock"

    @property
    def access_log_path(self) -> Path:
        return self.access_log or self.run_dir / "access_log.sock"

    @property
    def bpf_cache_path(self) -> Path:
        return self.bpf_cache or self.state_dir / "bpf-cache"

    @property
    def upstream_server(self) -> tuple[str, int] | None:
        """The one server of all redirects, if there is one."""
        return None if self.upstream is None else _numeric_parts(self.upstream)

    def settings(self) -> dict[str, str]:
        """Every setting in force, as a file would have it."""
        values = self.model_dump() | {
            "socket": self.api_path,
            "xds_socket": self.xds_path,
            "access_log": self.access_log_path,
            "bpf_cache": self.bpf_cache_path,
            "proxy_ports": "{}-{}".format(*self.proxy_ports),
        }
        return {key_of(name): _written(value) for name, value in values.items()}


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def key_of(field: str) -> str:
    """How files and flags write the name of a field."""
    return field.replace("_", "-")


def load_config(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    config_dir: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> AgentConfig:
    """The configuration of all sources together.

    flags: by field name; None is "not given". Raises UsageError with every setting
    that is wrong, and where it was made.
    """
    sources: dict[str, Mapping[str, Any]] = {
        "the command line": {name: v for name, v in flags.items() if v is not None},
        "the environment": {
            name: environment[variable]
            for name in AgentConfig.model_fields
            if (variable := ENVIRONMENT + name.upper()) in environment
        },
    }
    if config_dir is not None:
        sources[str(config_dir)] = _read_directory(config_dir)
    if config is not None:
        sources[str(config)] = _read_file(config)
    merged: dict[str, Any] = {}
    for values in reversed(sources.values()):
        merged |= values
    try:
        return AgentConfig.model_validate(merged)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0]) if detail["loc"] else ""
            place = next((f" in {place}" for place, v in sources.items() if name in v), "")
            problems.append(_problem(name, detail["type"], detail["msg"]) + place)
        raise wrong(problems) from error


def wrong(problems: list[str]) -> UsageError:
    """The error that says all of them."""
    return UsageError("the configuration is wrong:\n  " + "\n  ".join(problems))


def _problem(name: str, kind: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not name:
        return message
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(name, AgentConfig.model_fields, n=1)
        hint = f"; did you mean {key_of(close[0])!r}?" if close else ""
        return f"{key_of(name)}: there is no such setting{hint}"
    return f"{key_of(name)}: {message}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        documents = read_documents(str(path), read_file(path))
    except DocumentError as error:
        raise UsageError(str(error)) from error
    if not documents:
        return {}
    value = documents[0].value
    if len(documents) > 1 or not isinstance(value, dict):
        raise UsageError(f"{path}: must be one mapping of settings")
    return {key.replace("-", "_"): item for key, item in value.items()}


def _read_directory(path: Path) -> dict[str, str]:
    """Files by their names; hidden ones are a ConfigMap's own links."""
    try:
        files = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        return {
            item.name.replace("-", "_"): read_file(item).strip() for item in files if item.is_file()
        }
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise UsageError(str(error)) from error
