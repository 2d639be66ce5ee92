"""The agent's state in the shapes of the API."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from ipaddress import ip_network

from node.agent.documents import PolicyDocument, means, parse_labels, show_label
from node.agent.endpoints import NodeEndpoint, UnknownEndpoint
from node.agent.node import Node
from node.api import machine, models
from xds.ads.resources import Direction
from xds.labels import LabelSet
from xds.model_http import SECRET_NAMESPACE
from xds.policy import Peer, TLSContext
from xds.source import Problem


class UnknownIdentity(LookupError):
    """There is no such identity."""


def places(problems: Sequence[Problem]) -> list[models.ProblemPlace]:
    return [models.ProblemPlace.of(problem) for problem in problems]


def policy(document: PolicyDocument) -> models.Policy:
    return models.Policy(
        kind=document.kind,
        namespace=document.namespace,
        name=document.name,
        source="file" if document.file else "api",
        file=document.file,
        revision=document.revision,
        rules=[[show_label(label) for label in policy.labels] for policy in document.policies],
        document=dict(document.value),
    )


def file_problems(node: Node) -> list[models.ProblemPlace]:
    """What is wrong with files of the policy directory."""
    found = node.folder.problems() if node.folder is not None else {}
    return [place for problems in found.values() for place in places(problems)]


def quarantined(node: Node) -> list[models.ProblemPlace]:
    """What is wrong with rules that were good once, and are closed now."""
    return [p for d in node.repository.state.policies() for p in places(d.problems())]


def identities(node: Node) -> list[models.Identity]:
    users: dict[LabelSet, int] = defaultdict(int)
    for endpoint in node.repository.state.endpoints.values():
        users[endpoint.label_set()] += 1
    return [
        models.Identity(id=number, labels=show_labels(labels), endpoints=users.get(labels, 0))
        for number, labels in sorted(node.control.engine.known_identities().items())
    ]


def show_labels(labels: LabelSet) -> list[str]:
    return [show_label(label) for label in labels]


def label_test(texts: Sequence[str]) -> Callable[[LabelSet], bool]:
    """Whether a set has all of the labels `texts`. Raises ValueError for what is no label."""
    wanted = parse_labels(texts)
    return lambda labels: all(any(means(want, label) for label in labels) for want in wanted)


def endpoint(node: Node, endpoint: NodeEndpoint) -> models.Endpoint:
    """One endpoint. Raises UnknownEndpoint if it has gone in the meantime."""
    try:
        enforced = node.control.engine.policy(endpoint.id)
    except KeyError:
        raise UnknownEndpoint(f"there is no endpoint {endpoint.id}") from None
    health = node.links.health(endpoint)
    return models.Endpoint(
        id=endpoint.id,
        state=health.state,
        identity=models.IdentityRef(id=enforced.identity, labels=show_labels(endpoint.label_set())),
        networking=models.Networking(
            addressing=[models.Addressing(ipv4=endpoint.address(4), ipv6=endpoint.address(6))],
            node=node.config.node_ip,
        ),
        external_identifiers=models.External.model_validate(dict(endpoint.external)),
        encryption={},
        policy=models.Enforcement(
            ingress=enforced.ingress_enforced,
            egress=enforced.egress_enforced,
            mode=endpoint.enforcement,
            audit=enforced.mode.audit,
        ),
        attachment=_attachment(endpoint),
        reason=health.reason,
        closed=list(health.closed),
    )


def _attachment(endpoint: NodeEndpoint) -> models.Attachment | None:
    found = endpoint.attachment
    if found is None:
        return None
    return models.Attachment(
        interface=found.interface,
        ifindex=found.ifindex,
        netns=found.netns,
        inner=found.inner,
        mode=endpoint.mode,
        sockmap=endpoint.sockmap,
    )


def ip_entries(node: Node) -> list[models.IpEntry]:
    """Every address and prefix that has an identity other than the world's."""
    owners = {
        address: endpoint.id
        for endpoint in node.repository.state.endpoints.values()
        for address in endpoint.addresses
    }
    return [
        models.IpEntry(
            cidr=str(ip_network(address)), identity=identity, endpoint=owners.get(address)
        )
        for address, identity in sorted(node.control.engine.addresses().items())
    ]


def selectors(node: Node) -> list[models.SelectorUse]:
    """Every selector of the policies that are in force, those of endpoints and of peers."""
    engine = node.control.engine
    users: Counter[Peer] = Counter()
    for policies in engine.policies.values():
        for policy in policies:
            users[policy.subject] += 1
            for rule in (*policy.ingress, *policy.egress):
                users.update(rule.peers or ())
    return [
        models.SelectorUse(selector=str(peer), users=count, identities=sorted(engine.select(peer)))
        for peer, count in sorted(users.items(), key=lambda item: str(item[0]))
    ]


def redirects(node: Node) -> list[models.Redirect]:
    """Which connections a parser judges, and at which proxy port."""
    ports, problems = node.redirects.ports(), node.redirects.problems()
    return [
        models.Redirect(
            endpoint=number,
            direction="ingress" if wanted.kind.direction is Direction.INGRESS else "egress",
            port=wanted.port,
            end_port=wanted.end_port,
            parser=wanted.kind.parser,
            proxy_port=ports.get(wanted.kind, 0),
            terminating=_secret(wanted.kind.terminating),
            originating=_secret(wanted.kind.originating),
            problem=problems.get(wanted.kind, ""),
        )
        for number in sorted(node.repository.state.endpoints)
        for wanted in node.redirects.of(number)
    ]


def _secret(context: TLSContext | None) -> str:
    return "" if context is None else f"{context.namespace or SECRET_NAMESPACE}/{context.secret}"


def xds_status(node: Node) -> models.XdsStatus:
    server = node.control.server
    return models.XdsStatus(
        versions={_short(url): number for url, number in server.versions().items()},
        streams=[
            models.Stream(
                node=stream.node_id,
                type=_short(stream.type_url),
                connected=stream.connected,
                sent=stream.sent_version,
                acked=stream.acked_version,
                nacked=stream.nacked_version,
                reason=stream.reason,
                refused=list(stream.refused),
                revision=stream.revision,
                incremental=stream.incremental,
                pending_since=stream.pending_since,
            )
            for stream in server.streams()
        ],
    )


def _short(url: str) -> str:
    return url.rpartition("/")[2]


def health(node: Node) -> models.Health:
    components = list(_components(node))
    working = [c for c in components if c.state in ("Ok", "Warning", "Failure")]
    well = sum(c.state == "Ok" for c in working)
    components.append(
        models.Component(
            name="Controller Status", state="Ok", message=f"{well}/{len(working)} healthy"
        )
    )
    components.append(_proxy_status(node))
    states = {component.state for component in components}
    return models.Health(
        state=next(state for state in ("Failure", "Warning", "Ok") if state in (*states, "Ok")),
        version=version("proxylib"),
        node=node.config.node_name,
        revision=node.repository.state.revision,
        components=components,
    )


def _components(node: Node) -> Iterator[models.Component]:
    state = node.repository.state
    # Cilium's own word for a node that shares its identities with nobody.
    shared = f"etcd: {node.config.etcd}" if node.config.etcd else "Disabled"
    yield models.Component(name="KVStore", state="Ok", message=shared)
    yield models.Component(
        name="Proxylib",
        state="Ok",
        message=f"{version('proxylib')} ({node.config.node_name})",
    )
    closed = quarantined(node)
    yield models.Component(
        name="Policy",
        state="Warning" if closed else "Ok",
        message=f"revision {state.revision}, {len(state.policies())} documents"
        + (f", {len(closed)} rules are closed (proxylib policy get)" if closed else ""),
    )
    problems = file_problems(node)
    if node.folder is None:
        yield models.Component(
            name="Policy directory",
            state="Warning" if state.files else "Disabled",
            message=f"none; {len(state.files)} files of an earlier one are in force"
            if state.files
            else "",
        )
    else:
        files = {place.file for place in problems}
        yield models.Component(
            name="Policy directory",
            state="Failure" if not node.folder.working else "Warning" if files else "Ok",
            message=f"{node.folder.path}, {len(state.files)} files in force"
            + (f", {len(files)} with errors (proxylib policy get)" if files else ""),
        )
    live = [stream for stream in node.control.server.streams() if stream.connected]
    refused = [stream for stream in live if stream.nacked_version > stream.acked_version]
    yield models.Component(
        name="xDS",
        state="Warning" if refused else "Ok",
        message=f"{len({stream.node_id for stream in live})} nodes, {len(live)} streams"
        + (f", {len(refused)} refuse a version (proxylib xds status)" if refused else ""),
    )
    yield models.Component(
        name="Access log",
        state="Ok" if node.decisions.working else "Failure",
        message=f"{node.decisions.clients} clients, {node.decisions.entries} entries",
    )
    health = node.links.datapath.health
    gone = sum(health(number).state == "disconnected" for number in state.endpoints)
    yield models.Component(
        name="Endpoints",
        state="Failure" if not node.links.watching else "Warning" if gone else "Ok",
        message=f"{len(state.endpoints)}, {len(node.control.engine.known_identities())} identities"
        + (f", {gone} disconnected (proxylib endpoint list)" if gone else ""),
    )
    yield from machine.components(node)


def _proxy_status(node: Node) -> models.Component:
    first, last = node.config.proxy_ports
    without = len(node.redirects.problems())
    return models.Component(
        name="Proxy Status",
        state="Warning" if without else "Ok",
        message=f"ip {node.config.node_ip}, {len(redirects(node))} redirects active "
        f"on ports {first}-{last}"
        + (f", {without} listeners cannot be had (GET /v1/redirects)" if without else ""),
    )
