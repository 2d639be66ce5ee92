"""The shape of what rules are about: labels, CIDRs, names, services, entities, ports."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from xds.entities import ENTITIES
from xds.fqdn import match_name, match_pattern
from xds.shape import LabelKey, LabelValue, Many, Optional, Shape

MAX_PORT = 65535

MAX_PREFIX_TEXT = 64
"""Longest CIDR as text, characters; the longest real one has 43."""

_OBJECT_NAME = re.compile("[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
PORT_NAME = re.compile("(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
MAX_PORT_NAME = 15
"""Longest port name, characters (RFC 6335 section 5.1)."""

_ICMP_TYPES = {
    "IPv4": {
        **{"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8},
        **{"EchoRequest": 8, "RouterAdvertisement": 9, "RouterSelection": 10},
        **{"TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14},
        **{"Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43},
    },
    "IPv6": {
        **{"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3},
        **{"ParameterProblem": 4, "EchoRequest": 128, "EchoReply": 129},
        **{"MulticastListenerQuery": 130, "MulticastListenerReport": 131},
        **{"MulticastListenerDone": 132, "RouterSolicitation": 133},
        **{"RouterAdvertisement": 134, "NeighborSolicitation": 135},
        **{"NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138},
        **{"ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140},
        **{"InverseNeighborDiscoverySolicitation": 141},
        **{"InverseNeighborDiscoveryAdvertisement": 142},
        **{"HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145},
        **{"MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147},
        **{"DuplicateAddressRequestCodeSuffix": 157},
        **{"DuplicateAddressConfirmationCodeSuffix": 158},
        **{"ExtendedEchoRequest": 160, "ExtendedEchoReply": 161},
    },
}
"""Numbers of the type names that Cilium knows (IANA's registries)."""


def port_of(value: Any) -> int | str:
    """The port of a document, as a number or a name. Raises ValueError."""
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if re.fullmatch("[0-9]{1,5}", text) and int(text) <= MAX_PORT:
        return int(text)
    if len(text) <= MAX_PORT_NAME and PORT_NAME.fullmatch(text):
        return text
    if re.fullmatch("[-0-9.]*", text):
        raise ValueError(f"must be a port number from 0 (any) to {MAX_PORT}")
    raise ValueError(
        f"{text[:80]!r} is neither a port number nor a port's name (at most {MAX_PORT_NAME} of "
        "a-z, 0-9 and '-')"
    )


def _prefix(text: str) -> str:
    if len(text) > MAX_PREFIX_TEXT:
        raise ValueError("is not an address or CIDR")
    if "%" in text:
        raise ValueError(f"{text!r}: an address with a zone is not known elsewhere")
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address or CIDR such as 10.0.0.0/8") from error


def _name(text: str) -> str:
    match_name(text)
    return text


def _pattern(text: str) -> str:
    match_pattern(text)
    return text


def _object_name(text: str) -> str:
    if not _OBJECT_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name: letters, digits, '-', '_' and '.', the first and the last "
            "a letter or digit"
        )
    return text


def _entity(text: str) -> str:
    if text not in ENTITIES:
        raise ValueError(f"unknown entity {text[:80]!r}; known: {', '.join(ENTITIES)}")
    return text


def _icmp_type(value: Any) -> str:
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return str(value)
    raise ValueError("must be an ICMP type: a number or a name")


Prefix = Annotated[str, AfterValidator(_prefix)]
DnsName = Annotated[str, AfterValidator(_name)]
DnsPattern = Annotated[str, AfterValidator(_pattern)]
KubernetesName = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_object_name)]
Entity = Annotated[
    str, AfterValidator(_entity), Field(json_schema_extra={"enum": list[JsonValue](ENTITIES)})
]


class Expression(Shape):
    """One matchExpressions item."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Optional[Many[LabelValue]] = None

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            need = "needs at least one of" if not self.values else "takes no"
            raise PydanticCustomError("values", f"operator {self.operator} {need} 'values'")
        return self


class EndpointSelector(Shape):
    """A selector by labels; {} selects every endpoint."""

    matchLabels: Optional[Annotated[dict[LabelKey, LabelValue], Field(max_length=1000)]] = None
    matchExpressions: Optional[Many[Expression]] = None


class CIDRRule(Shape):
    """A CIDR without some of its parts."""

    cidr: Prefix
    except_: Annotated[Optional[Many[Prefix]], Field(alias="except")] = None

    @model_validator(mode="after")
    def _excepts_within(self) -> Self:
        check_excepts(self.cidr, self.except_ or ())
        return self


def check_excepts(cidr: str, excepts: list[str] | tuple[str, ...]) -> None:
    """Raise PydanticCustomError unless each of `excepts` is a part of `cidr`."""
    whole = ipaddress.ip_network(cidr)
    for text in excepts:
        part = ipaddress.ip_network(text)
        if part.version != whole.version or not part.subnet_of(whole):  # type: ignore[arg-type]
            raise PydanticCustomError("except", f"except {text} is not a part of {cidr}")


class FQDNSelector(Shape):
    """One DNS name, or those that match a pattern."""

    matchName: Optional[DnsName] = None
    matchPattern: Optional[DnsPattern] = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.matchName is None) == (self.matchPattern is None):
            raise PydanticCustomError("fqdn", "needs either 'matchName' or 'matchPattern'")
        return self


class K8sService(Shape):
    """A service by its name."""

    serviceName: KubernetesName
    namespace: Optional[KubernetesName] = None


class K8sServiceSelector(Shape):
    """Services by their labels."""

    selector: EndpointSelector
    namespace: Optional[KubernetesName] = None


class Service(Shape):
    """One toServices item."""

    k8sService: Optional[K8sService] = None
    k8sServiceSelector: Optional[K8sServiceSelector] = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.k8sService is None) == (self.k8sServiceSelector is None):
            raise PydanticCustomError("service", "needs either k8sService or k8sServiceSelector")
        return self


class PortProtocol(Shape):
    """A port, or the range from it to endPort."""

    port: Annotated[int | str, BeforeValidator(port_of, json_schema_input_type=int | str)]
    endPort: Optional[Annotated[int, Field(ge=0, le=MAX_PORT)]] = None
    protocol: Literal["TCP", "UDP", "SCTP", "ANY"] = "ANY"

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        if not self.endPort:
            return self
        if isinstance(self.port, str):
            raise PydanticCustomError("range", "a range goes from a port number, not from a name")
        if not 0 < self.port <= self.endPort:
            raise PydanticCustomError(
                "range", f"the range {self.port}-{self.endPort} does not ascend from a real port"
            )
        return self


class IcmpField(Shape):
    """An ICMP type, by its number or its name."""

    type: Annotated[str, BeforeValidator(_icmp_type, json_schema_input_type=int | str)]
    family: Literal["IPv4", "IPv6"] = "IPv4"

    @property
    def number(self) -> int:
        """The type's number; -1 if there is none of that name."""
        if re.fullmatch("[0-9]{1,3}", self.type):
            return int(self.type)
        return _ICMP_TYPES[self.family].get(self.type, -1)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if not 0 <= self.number <= 255:
            known = ", ".join(_ICMP_TYPES[self.family])
            raise PydanticCustomError(
                "icmp", f"is no {self.family} ICMP type: a number up to 255, or one of {known}"
            )
        return self


class IcmpRule(Shape):
    """One icmps item."""

    fields: Annotated[list[IcmpField], Field(min_length=1, max_length=40)]
