"""What goes over the wire, in both directions. Names are Cilium's where it has the same."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xds.source import Problem

MAX_LABELS = 64
"""Labels of an endpoint, or of one request."""

MAX_LABEL = 1100
"""Longest label, characters: source, key and value."""

MAX_FILE_NAME = 4096
"""Longest name of a text, characters: a path's."""

MAX_FILES = 20_000
"""Texts of one request."""

MAX_REVISION = 2**53
"""Largest number that every JSON reader takes exactly."""

LabelText = Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]
LabelTexts = Annotated[list[LabelText], Field(max_length=MAX_LABELS)]
AddressText = Annotated[str, Field(min_length=2, max_length=45)]
AttachmentId = Annotated[str, Field(max_length=600)]
"""Names of networks and containers have no bound of their own."""


Placement = Literal["node", "sidecar"]
"""Which Envoy judges an endpoint: the node's, or one inside its own network namespace."""

Mode = Literal["default", "always", "never"]
"""When a direction is closed: if a policy says so, in any case, never."""


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Wire(BaseModel):
    """Fields are dashed on the wire; what is sent to us has no unknown ones."""

    model_config = ConfigDict(
        alias_generator=_dashed, populate_by_name=True, extra="forbid", strict=True
    )


class ProblemPlace(Wire):
    """One error or warning. Lines and columns count from 1; 0 is "not known"."""

    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    message: str

    @classmethod
    def of(cls, problem: Problem) -> Self:
        place = problem.place
        return cls(
            file=place.file,
            line=place.line,
            column=place.column,
            path=place.path,
            message=problem.message,
        )


class Policy(Wire):
    """A policy document in force. rules: the labels of each of its rules."""

    kind: str
    namespace: str
    name: str
    source: Literal["api", "file"]
    file: str
    revision: int
    rules: list[list[str]]
    document: dict[str, Any]


class PolicyList(Wire):
    """The policies in force, and what is wrong with files that are not."""

    revision: int
    policies: list[Policy]
    problems: list[ProblemPlace]


class PolicyText(Wire):
    """Policy documents, YAML or JSON. name: what problems are to call the text."""

    name: Annotated[str, Field(max_length=MAX_FILE_NAME)]
    text: str


class PolicyTexts(Wire):
    """Several texts that are to be put in force together."""

    files: Annotated[list[PolicyText], Field(min_length=1, max_length=MAX_FILES)]


class Changed(Wire):
    """A change of the policies: its revision, and which documents it was about."""

    revision: int
    policies: list[str]
    warnings: list[ProblemPlace] = []


class Validation(Wire):
    """Whether documents could be put in force."""

    valid: bool
    errors: list[ProblemPlace]
    warnings: list[ProblemPlace]


class Waited(Wire):
    """Who has acknowledged a revision. waiting: by node, why it has not."""

    revision: int
    reached: bool
    nodes: list[str]
    waiting: dict[str, str]


class SelectorUse(Wire):
    """A selector of the policies, how many rules use it, and whom it selects."""

    selector: str
    users: int
    identities: list[int]


class Identity(Wire):
    """A security identity: a number for a set of labels."""

    id: int
    labels: list[str]
    endpoints: int = 0


class IdentityRef(Wire):
    id: int
    labels: list[str]


class Addressing(Wire):
    ipv4: str = ""
    ipv6: str = ""


class Networking(Wire):
    addressing: list[Addressing]
    node: str


class External(Wire):
    """What others call an endpoint. cni-attachment-id: NETWORK:CONTAINER:INTERFACE."""

    cni_attachment_id: AttachmentId = ""
    container_id: Annotated[str, Field(max_length=253)] = ""
    k8s_namespace: Annotated[str, Field(max_length=253)] = ""
    k8s_pod_name: Annotated[str, Field(max_length=253)] = ""
    pod_name: Annotated[str, Field(max_length=507)] = ""


class Enforcement(Wire):
    """Whether rules restrict a direction of an endpoint. audit: only in the log.

    mode: what was asked for this endpoint.
    """

    ingress: bool
    egress: bool
    mode: Mode = "default"
    audit: bool = False


class Attachment(Wire):
    """An endpoint's link: `interface` of the node, `inner` in its network namespace.

    mode: where its programs are: the node's end, or (sidecar) inside. sockmap: bytes
    between sockets of this node may pass the TCP stack by.
    """

    interface: str
    ifindex: int
    netns: str
    inner: str
    mode: Placement = "node"
    sockmap: bool = False


class Endpoint(Wire):
    """An endpoint, as a CiliumEndpoint's status has it.

    attachment: None if its packets pass no program of ours. reason: why its state is not
    "ready". closed: ports that are closed because nobody can judge them, and why.
    """

    id: int
    state: str
    identity: IdentityRef
    networking: Networking
    external_identifiers: External
    encryption: dict[str, Any]
    policy: Enforcement
    attachment: Attachment | None = None
    reason: str = ""
    closed: list[str] = []


class PortName(Wire):
    """What an endpoint calls one of its ports."""

    name: Annotated[str, Field(pattern="^[a-z0-9-]+$", max_length=15)]
    port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class EndpointRequest(Wire):
    """A new endpoint: one IPv4 address, one IPv6 address, or one of each.

    netns (a path, or a name as `ip netns` has it), pid (a process in it) or interface (the
    node's end of its veth): where it is; addresses are found there, if none are given.
    inner: the end inside, where there are several.
    """

    id: Annotated[int, Field(ge=1, le=65535)] | None = None
    addresses: Annotated[list[AddressText], Field(max_length=2)] = []
    labels: LabelTexts = []
    external_identifiers: External = External()
    ports: Annotated[list[PortName], Field(max_length=100)] = []
    enforcement: Mode = "default"
    audit: bool = False
    netns: Annotated[str, Field(max_length=MAX_FILE_NAME)] = ""
    pid: Annotated[int, Field(ge=1, le=2**22)] | None = None
    interface: Annotated[str, Field(max_length=15)] = ""
    inner: Annotated[str, Field(max_length=15)] = ""
    mode: Placement = "node"
    sockmap: bool = False

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        placed = bool(self.netns or self.pid or self.interface)
        if not placed and not self.addresses:
            raise ValueError("needs addresses, or netns, pid or interface to find them by")
        if not placed and (self.mode == "sidecar" or self.sockmap):
            raise ValueError("sidecar and sockmap need netns, pid or interface")
        if self.netns and self.pid:
            raise ValueError("netns and pid are two ways to say the same: give one")
        return self


class ModeChange(Wire):
    """How an endpoint's policies are enforced; what is left out stays.

    sockmap: whether bytes between sockets of this node may pass the TCP stack by.
    """

    enforcement: Mode | None = None
    audit: bool | None = None
    sockmap: bool | None = None


class LabelsRequest(Wire):
    """All labels of an endpoint."""

    labels: LabelTexts


class LabelsChange(Wire):
    """Labels to add to an endpoint's, and labels to take away."""

    add: LabelTexts = []
    remove: LabelTexts = []


class NameEntry(Wire):
    """A DNS name, and the addresses that it has."""

    name: str
    addresses: list[str]


class NameRequest(Wire):
    """All addresses that a DNS name has now."""

    addresses: Annotated[list[AddressText], Field(min_length=1, max_length=1000)]


class Revision(Wire):
    """The revision of a change."""

    revision: int


class IpEntry(Wire):
    """Which identity an address, or a range of them, has."""

    cidr: str
    identity: int
    endpoint: int | None = None


class Redirect(Wire):
    """Connections of an endpoint that are judged by a parser. proxy_port 0: none, and why.

    terminating, originating: the TLS secrets of its listener and of the way on.
    """

    endpoint: int
    direction: Literal["ingress", "egress"]
    port: int
    end_port: int
    parser: str
    proxy_port: int = 0
    terminating: str = ""
    originating: str = ""
    problem: str = ""


class Reloading(Wire):
    """How many Envoys there are that new ones are to take over from."""

    envoys: int


class Stream(Wire):
    """What one subscriber of one type of resource has. Versions are 0 where there is none.

    acked: what is in force there; reason and refused (resources; none: the response as a
    whole) are of a version that it did not take. revision: the newest one that is wholly
    in force there. pending-since: when what it has not answered was sent, seconds since
    1970.
    """

    node: str
    type: str
    connected: bool
    sent: int
    acked: int
    nacked: int
    reason: str
    refused: list[str]
    revision: int
    incremental: bool
    pending_since: float | None = None


class XdsStatus(Wire):
    """The control server: current versions by type, and every subscriber."""

    versions: dict[str, int]
    streams: list[Stream]


class Component(Wire):
    """One part of the agent: "Ok", "Warning", "Failure" or "Disabled", and in words.

    details: more of it, a line each.
    """

    name: str
    state: Literal["Ok", "Warning", "Failure", "Disabled"]
    message: str
    details: list[str] = []


class Health(Wire):
    """The agent's own state. `state` is the worst of its components'."""

    state: Literal["Ok", "Warning", "Failure"]
    version: str
    node: str
    revision: int
    components: list[Component]
