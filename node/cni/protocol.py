"""The protocol of CNI plugins, versions 0.3.0 to 1.1.0: a request, and errors.

A runtime starts the plugin with variables (``CNI_COMMAND`` ...) and the network's configuration
as JSON on its standard input.  What the plugin prints is the result, or an error with one of the
specification's codes ("Container Network Interface (CNI) Specification", section 2 and 5).
Nothing of a request is trusted: whatever does not fit is refused with a name for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions that are spoken: chains exist since 0.3.0."""

SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version that brought a command, for those that came later."""

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
_OF_CONTAINERS = ("ADD", "DEL", "CHECK")

MAX_CONFIG = 1 << 20
"""Longest configuration, bytes: a result of many addresses has some thousands."""

MAX_LABELS = 64
"""Most labels of a container (the agent's own bound)."""

VALID_ATTACHMENTS = "cni.dev/valid-attachments"
"""What GC is told: the containers that are still there (1.1.0)."""

_SPECIFIED = ("cniVersion", "name", "type", "capabilities", "runtimeConfig", "prevResult")
_WELL_KNOWN = ("args", "ipam", "dns", "ipMasq")
"""Keys that are the specification's, whoever reads them."""

_OURS = {"socket": str, "labels": list, "sidecar": bool, "sockmap": bool}
"""Keys of ours."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""Of a network, and of a container."""

_INTERFACE = re.compile(r"[^\s/:]{1,15}")


class Code(IntEnum):
    """The specification's error codes; those from 100 are a plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    DECODING = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    REFUSED = 100
    BROKEN = 101


class CniError(Exception):
    """The request fails: its code, in a few words why, and more of it."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    def to_json(self, version: str) -> dict[str, Any]:
        """As the specification has it."""
        error: dict[str, Any] = {
            "cniVersion": version,
            "code": int(self.code),
            "msg": self.message,
        }
        return error | ({"details": self.details} if self.details else {})


@dataclass(frozen=True, slots=True)
class Request:
    """What a runtime asks. For GC and STATUS there is no container.

    network: the network's name. labels: the container's, by source and key. result: that of
    the plugins before this one (None: there is none). valid: GC's containers that are left, as
    (container, interface).
    """

    command: str
    version: str
    network: str
    container: str = ""
    netns: str = ""
    interface: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    socket: str = ""
    sidecar: bool = False
    sockmap: bool = False
    result: Mapping[str, Any] | None = None
    valid: frozenset[tuple[str, str]] = frozenset()

    @property
    def attachment(self) -> str:
        """What the endpoint is called: the specification's key of a container's interface."""
        return attachment_id(self.network, self.container, self.interface)

    def addresses(self) -> list[str]:
        """What the container's interface has been given. Raises CniError."""
        result = self.result
        if result is None:
            raise CniError(
                Code.INVALID_CONFIG,
                "proxylib-cni is not the first plugin of a chain",
                "it attaches what another plugin has made: put it behind ptp, which does",
            )
        try:
            interfaces = result.get("interfaces", [])
            ours = {
                number
                for number, interface in enumerate(interfaces)
                if interface["name"] == self.interface and interface.get("sandbox")
            }
            found = [
                str(ip["address"]).partition("/")[0]
                for ip in result.get("ips", [])
                if ip.get("interface") is None or ip["interface"] in ours
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise CniError(Code.DECODING, "prevResult is no result", repr(error)) from error
        if not found:
            raise CniError(
                Code.INVALID_CONFIG,
                f"the plugins before this one gave {self.interface} no address",
                "an endpoint is known by its address: have an ipam in the network's configuration",
            )
        return found


def attachment_id(network: str, container: str, interface: str) -> str:
    """The name of a container's interface in a network. None of the three has a colon."""
    return f"{network}:{container}:{interface}"


def command_of(environment: Mapping[str, str]) -> str:
    """What a runtime wants. Raises CniError if it is no runtime."""
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND is {command!r}" if command else "CNI_COMMAND is missing",
            f"this is a CNI plugin, which container runtimes call; it knows {', '.join(COMMANDS)}",
        )
    return command


def read_config(text: bytes) -> dict[str, Any]:
    """The configuration that a runtime gives. Raises CniError if it is none."""
    if len(text) > MAX_CONFIG:
        raise CniError(Code.DECODING, f"the configuration is longer than {MAX_CONFIG} bytes")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CniError(Code.DECODING, "the configuration is no JSON", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(Code.DECODING, "the configuration is no JSON object")
    return config


def version_of(config: Mapping[str, Any]) -> str:
    """The version to answer in: the runtime's, or the newest that is spoken here."""
    version = config.get("cniVersion")
    return version if version in VERSIONS else VERSIONS[-1]


def read_request(
    command: str, environment: Mapping[str, str], config: Mapping[str, Any]
) -> Request:
    """What a runtime asks by a command with this configuration. Raises CniError."""
    if command == "VERSION":
        return Request(command, version_of(config), "")
    version = config.get("cniVersion")
    spoken = VERSIONS[VERSIONS.index(SINCE.get(command, VERSIONS[0])) :]
    if version not in spoken:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"CNI version {version!r} is not supported for {command}",
            f"supported: {', '.join(spoken)}",
        )
    _check_keys(config)
    result = config.get("prevResult")
    if result is not None and not isinstance(result, dict):
        raise CniError(Code.DECODING, "prevResult is no result")
    of_container = command in _OF_CONTAINERS
    return Request(
        command,
        version,
        _matching(_NAME, config.get("name"), "name", Code.INVALID_CONFIG),
        **_container(environment, command) if of_container else {},
        arguments=_arguments(environment.get("CNI_ARGS", "")) if of_container else {},
        labels=_all_labels(config),
        socket=config.get("socket", ""),
        sidecar=config.get("sidecar", False),
        sockmap=config.get("sockmap", False),
        result=result,
        valid=_valid(config) if command == "GC" else frozenset(),
    )


def _check_keys(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        # Keys of a domain (cni.dev/...) are for those who know them.
        if key not in (*_SPECIFIED, *_WELL_KNOWN, *_OURS) and "/" not in key:
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                f"the configuration has a key {key!r} that nobody reads",
                f"proxylib-cni has {', '.join(_OURS)}",
            )
        if key in _OURS and not isinstance(value, _OURS[key]):
            raise CniError(
                Code.INVALID_CONFIG, f"{key!r} of the configuration is no {_OURS[key].__name__}"
            )


def _matching(pattern: re.Pattern[str], value: object, what: str, code: Code) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value) or value in (".", ".."):
        raise CniError(code, f"{what} is missing" if not value else f"{what} {value!r} is none")
    return value


def _container(environment: Mapping[str, str], command: str) -> dict[str, str]:
    netns = environment.get("CNI_NETNS", "")
    if not netns and command != "DEL":
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is missing")
    return {
        "netns": netns,
        **{
            field: _matching(pattern, environment.get(name), name, Code.INVALID_ENVIRONMENT)
            for field, name, pattern in (
                ("container", "CNI_CONTAINERID", _NAME),
                ("interface", "CNI_IFNAME", _INTERFACE),
            )
        },
    }


def _arguments(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part]
    if not all(name and equals for name, equals, _ in pairs):
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS {text[:200]!r} is not NAME=VALUE;...")
    return {name: value for name, _, value in pairs}


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CniError(Code.INVALID_CONFIG, f"{key!r} of the configuration is no object")
    return value


def _all_labels(config: Mapping[str, Any]) -> dict[str, str]:
    """The network's labels, those of the container's arguments, those of the runtime.

    A later one of the same source and key counts.
    """
    places = (config, _mapping(_mapping(config, "args"), "cni"), _mapping(config, "runtimeConfig"))
    labels = {name: value for place in places for name, value in _labels(place.get("labels") or [])}
    if len(labels) > MAX_LABELS:
        raise CniError(Code.INVALID_CONFIG, f"there are more than {MAX_LABELS} labels")
    return labels


def _labels(items: object) -> Iterator[tuple[str, str]]:
    """Labels as ``source:key=value``, or as the conventions have them: {"key":, "value":}."""
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, dict) and item.keys() <= {"key", "value"}:
            name, value = item.get("key"), item.get("value", "")
        else:
            name, _, value = item.partition("=") if isinstance(item, str) else ("", "", "")
        if not (isinstance(name, str) and name and isinstance(value, str)):
            raise CniError(
                Code.INVALID_CONFIG,
                f"{json.dumps(item)[:200]} is no label",
                'a label is "source:key=value" or {"key": "source:key", "value": "value"}',
            )
        if name.startswith("reserved:"):
            raise CniError(Code.INVALID_CONFIG, f"{name}: a container has no reserved label")
        yield name, value


def _valid(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    items = config.get(VALID_ATTACHMENTS)
    try:
        if not isinstance(items, list):
            raise TypeError(f"it is {json.dumps(items)[:80]}")
        return frozenset((item["containerID"], item["ifname"]) for item in items)
    except (KeyError, TypeError) as error:
        # Without the list, everything would be garbage.
        raise CniError(
            Code.INVALID_CONFIG, f"{VALID_ATTACHMENTS} is no list of attachments", str(error)
        ) from error
