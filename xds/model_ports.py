"""The shape of toPorts: ports, and what may be said on them, by whom, in whose name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from xds.model_http import HttpRule
from xds.model_peers import DnsName, FQDNSelector, KubernetesName, PortProtocol
from xds.shape import Many, Optional, Shape

MAX_PORTS = 40
"""Most ports of one toPorts item, as in Cilium's own schema."""

NAMED = ("http", "kafka", "dns")
"""Protocols whose rules may also stand under their own name, without an l7proto."""

PARSERS = ("kafka",)
"""Those of them whose rules a parser judges."""


_ALLOW_ALL = "; to allow (and log) everything write {}: [{{}}]"


def _not_empty(value: Any, info: ValidationInfo) -> Any:
    if value is None or value == []:
        # Everything is allowed where somebody wrote so, not where a file was cut.
        raise ValueError(f"has no rules{_ALLOW_ALL.format(info.field_name)}")
    return value


Items = Annotated[Many[dict[str, str | None]] | None, BeforeValidator(_not_empty)]
"""L7 rules; at least one."""

HttpItems = Annotated[Many[HttpRule] | None, BeforeValidator(_not_empty)]
"""HTTP rules; at least one."""

DnsItems = Annotated[Many[FQDNSelector] | None, BeforeValidator(_not_empty)]
"""Names that may be asked for; at least one."""


class L7Rules(Shape):
    """What may be said on the ports, in the words of one parser."""

    l7proto: Optional[Annotated[str, Field(min_length=1)]] = None
    l7: Items = None
    http: HttpItems = None
    kafka: Items = None
    dns: DnsItems = None

    @property
    def field(self) -> str:
        """The field that says which parser: l7proto, or one of NAMED; empty if none does."""
        return next((name for name in ("l7proto", *NAMED) if getattr(self, name) is not None), "")

    @model_validator(mode="after")
    def _has_one_proto(self) -> Self:
        if self.l7 is not None and self.l7proto is None:
            raise PydanticCustomError("l7proto", "l7 needs an l7proto that says which parser")
        if self.l7proto is not None and self.l7 is None:
            raise PydanticCustomError("l7", f"l7proto has no l7 rules{_ALLOW_ALL.format('l7')}")
        for name in NAMED:
            if self.field != name and getattr(self, name) is not None:
                raise PydanticCustomError("l7proto", f"{name} rules cannot stand beside others")
        return self


class Secret(Shape):
    """Where a secret is."""

    name: KubernetesName
    namespace: Optional[KubernetesName] = None


class TLSContext(Shape):
    """One side of TLS interception. The names say which item of the secret is what."""

    secret: Secret
    trustedCA: Optional[str] = None
    certificate: Optional[str] = None
    privateKey: Optional[str] = None


class EnvoyConfig(Shape):
    """The document that defines a listener."""

    kind: Literal["CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"] = "CiliumEnvoyConfig"
    name: KubernetesName


class Listener(Shape):
    """A listener of somebody else's that is to get the connections."""

    envoyConfig: EnvoyConfig
    name: Annotated[str, Field(min_length=1, max_length=253)]
    priority: Annotated[int, Field(ge=0, le=100)] = 0


def _no_l7(value: Any) -> Any:
    raise ValueError("a deny rule cannot have L7 rules; deny the port, or allow less at L7")


Ports = Annotated[list[PortProtocol], Field(min_length=1, max_length=MAX_PORTS)]


class PortRule(Shape):
    """One toPorts item of an allow rule."""

    ports: Ports
    rules: Optional[L7Rules] = None
    terminatingTLS: Optional[TLSContext] = None
    originatingTLS: Optional[TLSContext] = None
    serverNames: Optional[Annotated[list[DnsName], Field(min_length=1, max_length=40)]] = None
    listener: Optional[Listener] = None

    @model_validator(mode="after")
    def _l7_fits(self) -> Self:
        field = self.rules.field if self.rules is not None else ""
        if field:
            self._check_ports("L7 rules", any_protocol=field == "dns")
        for name in ("terminatingTLS", "originatingTLS", "serverNames", "listener"):
            if getattr(self, name) is not None:
                self._check_ports(name, any_protocol=False)
        if self.listener is not None and field:
            raise PydanticCustomError("listener", "listener cannot stand beside rules")
        return self

    def _check_ports(self, what: str, *, any_protocol: bool) -> None:
        for port in self.ports:
            if port.port == 0:
                raise PydanticCustomError("l7port", f"{what} need a port; 0 stands for any")
            if not any_protocol and port.protocol != "TCP":
                raise PydanticCustomError(
                    "l7protocol",
                    f"{what} are for protocol TCP only, and port {port.port} has {port.protocol}",
                )


class PortDenyRule(Shape):
    """One toPorts item of a deny rule."""

    ports: Ports
    rules: Annotated[None, BeforeValidator(_no_l7)] = None
