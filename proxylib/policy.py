"""Compiled policy: cilium.NetworkPolicy resources, ready for one look-up per connection.

`compile_policies` turns a state-of-the-world response into a `PolicyMap`, all or
nothing.  `PolicyMap.decide` answers for (endpoint, direction, port, remote
identity, parser) with a `Decision`, whose matcher then judges messages.
The connection keeps the decision until the map is replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from proxylib.errors import PolicyError, RegistrationError, RuleError
from proxylib.http import HttpRule
from proxylib.http_secrets import NO_SECRETS, Secrets
from proxylib.proto import npds_pb2 as npds
from proxylib.rules import L7Rule, Matcher, always, never


class RuleSource(Protocol):
    """What policy needs of a parser factory."""

    rule_class: type[L7Rule]


class _BuiltIn:
    """The rules of `HTTP` where no parser of that name is installed."""

    rule_class: type[L7Rule] = HttpRule


HTTP = "http"
"""The parser whose rules the HTTP filter asks too."""

FindFactory = Callable[[str], RuleSource | None]

DecisionKey = tuple[bool, int, int, str, type[L7Rule] | None]
"""(ingress, port, remote, parser, the parser's rule class)."""

_MAX_DECISIONS = 1 << 13
"""Cached decisions per endpoint: ports x remotes in use at a time."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about a connection. `reason` tells why nothing can pass.

    would: what would be in force if nothing were in audit mode; None: the same.
    foreign: the rules had to be read again for the connection's version of the parser.
    """

    matcher: Matcher
    reason: str = ""
    would: Matcher | None = None
    foreign: bool = False

    @property
    def denied(self) -> bool:
        """True if no message can be allowed, whatever it is."""
        return self.matcher is never


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One PortNetworkPolicyRule: whom it is about, and what it lets through."""

    remotes: frozenset[int]
    precedence: int = 0
    deny: bool = False
    pass_to: int | None = None
    parser: str = ""
    closed: str = ""
    """Why the whole port is closed, if the rule cannot be enforced."""
    rule_class: type[L7Rule] | None = None
    allow: tuple[L7Rule, ...] = ()
    block: tuple[L7Rule, ...] = ()

    def selects(self, remote: int) -> bool:
        return not self.remotes or remote in self.remotes


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The rules of one port, port range, or (port 0) of every port."""

    port: int
    end_port: int
    rules: tuple[Rule, ...]

    def covers(self, port: int) -> bool:
        return self.port == 0 or self.port <= port <= (self.end_port or self.port)


@dataclass(frozen=True, slots=True, eq=False)
class EndpointPolicy:
    """One endpoint's policy, compiled from one resource. Immutable but for its caches.

    name: as error messages call it. settled: False if a rule is closed for want of
    its parser, which may be loaded later. audit: what would be in force if nothing
    were in audit mode; None: nothing is.
    """

    ingress: tuple[PortPolicy, ...]
    egress: tuple[PortPolicy, ...]
    addresses: tuple[str, ...] = ()
    name: str = ""
    settled: bool = True
    audit: EndpointPolicy | None = None
    # They live as long as the resource does not change, whatever else does.
    _decisions: dict[DecisionKey, Decision] = field(default_factory=dict)
    _matchers: dict[tuple[tuple[Rule, ...], str], Matcher] = field(default_factory=dict)

    def names(self, parsers: Collection[str]) -> bool:
        """Whether it has a rule for one of `parsers`."""
        own = (r.parser in parsers for p in (*self.ingress, *self.egress) for r in p.rules)
        return any(own) or (self.audit is not None and self.audit.names(parsers))

    def decide(
        self,
        *,
        ingress: bool,
        port: int,
        remote: int,
        parser: str,
        rule_class: type[L7Rule] | None = None,
    ) -> Decision:
        """The decision for a connection. Fails closed, with a reason.

        rule_class: what the connection's parser understands; None: what the rules
        were compiled for.
        """
        key = (ingress, port, remote, parser, rule_class)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(*key)
            if self.audit is not None and not decision.denied:
                would = self.audit.decide(
                    ingress=ingress, port=port, remote=remote, parser=parser, rule_class=rule_class
                )
                decision = replace(decision, would=would.matcher)
            if decision.foreign:
                # Not kept: an old version's code is to be freed when it is done.
                return decision
            if len(self._decisions) >= _MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def _decide(
        self, ingress: bool, port: int, remote: int, parser: str, rule_class: type[L7Rule] | None
    ) -> Decision:
        direction = "ingress" if ingress else "egress"
        covering = [p for p in (self.ingress if ingress else self.egress) if p.covers(port)]
        if not covering:
            return Decision(never, f"no {direction} policy for port {port}")
        rules = [rule for entry in covering for rule in entry.rules]
        # An entry without rules allows everybody.
        if not all(entry.rules for entry in covering):
            rules.append(Rule(frozenset()))
        closed = next((rule.closed for rule in rules if rule.closed), "")
        if closed:
            return Decision(never, closed)
        selected = _top_tier(rules, remote)
        if not selected:
            return Decision(never, f"identity {remote} is not allowed on {direction} port {port}")
        if any(rule.deny for rule in selected):
            return Decision(never, f"identity {remote} is denied on {direction} port {port}")
        if rule_class is not None and any(
            rule.rule_class not in (None, rule_class) for rule in selected if rule.parser == parser
        ):
            return _decide_foreign(selected, parser, rule_class)
        matcher = self._matcher(selected, parser)
        wanted = ", ".join(sorted({rule.parser for rule in selected if rule.parser}))
        reason = f"{direction} port {port} is for parser {wanted}, not {parser}"
        return Decision(matcher, reason if matcher is never else "")

    def _matcher(self, rules: tuple[Rule, ...], parser: str) -> Matcher:
        key = (rules, parser)
        matcher = self._matchers.get(key)
        if matcher is None:
            if len(self._matchers) >= _MAX_DECISIONS:
                self._matchers.clear()
            matcher = self._matchers[key] = _compile_l7(rules, parser)
        return matcher


@dataclass(eq=False)
class PolicyMap:
    """Every endpoint's policy at one version."""

    version: str = ""
    endpoints: dict[str, EndpointPolicy] = field(default_factory=dict)
    compiled: dict[bytes, EndpointPolicy] = field(default_factory=dict)
    """By serialized resource, so that the next version recompiles only what changed."""

    def decide(
        self,
        policy_name: str,
        *,
        ingress: bool,
        port: int,
        remote: int,
        parser: str,
        rule_class: type[L7Rule] | None = None,
    ) -> Decision:
        """The decision for a connection (EndpointPolicy.decide). Fails closed, with a reason."""
        endpoint = self.endpoints.get(policy_name)
        if endpoint is None:
            return Decision(never, f"no policy for endpoint {policy_name or '(none)'}")
        return endpoint.decide(
            ingress=ingress, port=port, remote=remote, parser=parser, rule_class=rule_class
        )

    def without(self, parsers: Collection[str]) -> PolicyMap:
        """This policy as compile_policies may build upon it once `parsers` have new code."""
        if not parsers:
            return self
        kept = {raw: each for raw, each in self.compiled.items() if not each.names(parsers)}
        return replace(self, compiled=kept)

    def rules_of(self, parser: str) -> Iterator[L7Rule]:
        """Every rule that is in force for `parser`, anywhere."""
        for endpoint in self.endpoints.values():
            for port in (*endpoint.ingress, *endpoint.egress):
                for rule in port.rules:
                    if rule.parser == parser:
                        yield from (*rule.allow, *rule.block)


def _top_tier(rules: Sequence[Rule], remote: int) -> tuple[Rule, ...]:
    """The rules of the highest precedence that say something about `remote`."""
    tiers: dict[int, list[Rule]] = defaultdict(list)
    for rule in rules:
        if rule.selects(remote):
            tiers[rule.precedence].append(rule)
    ceiling: int | None = None
    for precedence in sorted(tiers, reverse=True):
        if ceiling is not None and precedence > ceiling:
            continue
        tier = tiers[precedence]
        verdicts = [rule for rule in tier if rule.pass_to is None]
        if verdicts:
            return tuple(verdicts)
        ceiling = min(rule.pass_to for rule in tier if rule.pass_to is not None)
    return ()


def _decide_foreign(rules: tuple[Rule, ...], parser: str, rule_class: type[L7Rule]) -> Decision:
    """The decision for a version of the parser that the rules were not compiled for."""
    try:
        ours = tuple(_for_class(rule, rule_class) for rule in rules if rule.parser in ("", parser))
    except RuleError as error:
        reason = f"this version of {parser} does not know the rules: {error}"
        return Decision(never, reason, foreign=True)
    return Decision(_compile_l7(ours, parser), foreign=True)


def _for_class(rule: Rule, rule_class: type[L7Rule]) -> Rule:
    """`rule` for another version of its parser. Raises RuleError if that does not know it."""
    if rule.rule_class is None:
        return rule
    allow = tuple(rule_class(item.pairs) for item in rule.allow)
    block = tuple(rule_class(item.pairs) for item in rule.block)
    return replace(rule, rule_class=rule_class, allow=allow, block=block)


def _compile_l7(rules: tuple[Rule, ...], parser: str) -> Matcher:
    ours = [r for r in rules if r.rule_class is None or r.parser == parser]
    rule_class = next((r.rule_class for r in ours if r.rule_class is not None), None)
    block = [item for r in ours for item in r.block]
    if rule_class is None:
        return always if ours else never
    allow = [item for r in ours for item in r.allow]
    if any(not r.allow for r in ours):
        # Who allows everything does not keep the others from changing headers.
        allow.append(rule_class({}))
    allowed = rule_class.compile(allow)
    if not block:
        return allowed
    blocked = rule_class.compile(block, deny=True)
    return lambda message: not blocked(message) and allowed(message)


def compile_policies(
    resources: Iterable[bytes],
    find_factory: FindFactory,
    *,
    version: str = "",
    previous: PolicyMap | None = None,
    secrets: Secrets = NO_SECRETS,
) -> PolicyMap:
    """A PolicyMap from serialized cilium.NetworkPolicy `resources`.

    Raises PolicyError, naming the endpoint and the place, if any of them cannot
    be enforced; nothing of the response is then in force.  secrets: of header values.
    """
    known = previous.compiled if previous is not None else {}
    compiled: dict[bytes, EndpointPolicy] = {}
    endpoints: dict[str, EndpointPolicy] = {}
    for resource in resources:
        endpoint = known.get(resource)
        if endpoint is None or not endpoint.settled:
            endpoint = _compile_endpoint(resource, find_factory, secrets)
        compiled[resource] = endpoint
        for ip in endpoint.addresses:
            if ip in endpoints:
                raise PolicyError(f"{endpoint.name}: {ip} has a policy already")
            endpoints[ip] = endpoint
    return PolicyMap(version, endpoints, compiled)


def _compile_endpoint(
    resource: bytes, find_factory: FindFactory, secrets: Secrets
) -> EndpointPolicy:
    policy = npds.NetworkPolicy()
    try:
        policy.ParseFromString(resource)
    except Exception as error:
        raise PolicyError(f"not a cilium.NetworkPolicy: {error}") from error
    ips = tuple(policy.endpoint_ips)
    name = f"endpoint {policy.endpoint_id} ({', '.join(ips)})"
    if not 1 <= len(ips) <= 2 or not all(ips):
        raise PolicyError(f"{name}: endpoint_ips must be one or two addresses")

    def compiled(
        of: npds.NetworkPolicy | npds.AuditPolicy, where: str, audit: EndpointPolicy | None
    ) -> EndpointPolicy:
        into, out_of = of.ingress_per_port_policies, of.egress_per_port_policies
        ingress = _compile_ports(into, f"{where}: ingress", find_factory, secrets)
        egress = _compile_ports(out_of, f"{where}: egress", find_factory, secrets)
        settled = not any(rule.closed for port in ingress + egress for rule in port.rules)
        settled = settled and (audit is None or audit.settled)
        return EndpointPolicy(ingress, egress, ips, name, settled, audit)

    audit = compiled(policy.audit, f"{name}: audit", None) if policy.HasField("audit") else None
    return compiled(policy, name, audit)


def _compile_ports(
    entries: Iterable[npds.PortNetworkPolicy],
    where: str,
    find_factory: FindFactory,
    secrets: Secrets,
) -> tuple[PortPolicy, ...]:
    ports: list[PortPolicy] = []
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        if entry.protocol != npds.TCP:
            # Parsers judge byte streams; UDP entries are the datapath's.
            continue
        place = f"{where} port {entry.port}" + (f"-{entry.end_port}" if entry.end_port else "")
        if entry.port > 65535 or entry.end_port > 65535:
            raise PolicyError(f"{place}: a port is at most 65535")
        if entry.end_port and entry.end_port < entry.port:
            raise PolicyError(f"{place}: the range ends before it starts")
        if (entry.port, entry.end_port) in seen:
            raise PolicyError(f"{place}: duplicate port")
        seen.add((entry.port, entry.end_port))
        rules = tuple(_compile_rule(rule, place, find_factory, secrets) for rule in entry.rules)
        kinds = {rule.parser for rule in rules if rule.rule_class is not None}
        if len(kinds) > 1:
            raise PolicyError(f"{place}: mixed L7 types: {', '.join(sorted(kinds))}")
        ports.append(PortPolicy(entry.port, entry.end_port, rules))
    return tuple(ports)


def _compile_rule(
    rule: npds.PortNetworkPolicyRule, where: str, find_factory: FindFactory, secrets: Secrets
) -> Rule:
    remotes = frozenset(rule.remote_policies)
    verdict = rule.WhichOneof("verdict")
    if verdict == "deny" and rule.deny:
        return Rule(remotes, rule.precedence, deny=True)
    if verdict == "pass_precedence":
        return Rule(remotes, rule.precedence, pass_to=rule.pass_precedence)
    if rule.server_names:
        # A parser is not told the SNI: to leave it out would let everybody in.
        return Rule(remotes, rule.precedence, closed="server names cannot be judged here")
    kind = rule.WhichOneof("l7")
    parser = rule.l7_proto or {"http_rules": "http", "kafka_rules": "kafka"}.get(kind or "", "")
    if not parser:
        if kind is not None:
            raise PolicyError(f"{where}: l7_rules without an l7_proto")
        return Rule(remotes, rule.precedence)
    try:
        factory: RuleSource | None = find_factory(parser)
    except RegistrationError as error:
        # A parser that does not load must not take the other policies down.
        return Rule(remotes, rule.precedence, parser=parser, closed=str(error))
    if factory is None and parser == HTTP:
        # Envoy's own codec needs no parser of ours.
        factory = _BuiltIn()
    if factory is None:
        return Rule(remotes, rule.precedence, parser=parser, closed=f"unknown parser {parser!r}")
    allow: tuple[L7Rule, ...]
    if kind == "http_rules":
        if not issubclass(factory.rule_class, HttpRule):
            return Rule(remotes, rule.precedence, parser=parser, closed=f"no {kind} for {parser!r}")
        place = f"{where}: http_rules"
        allow = _http_rules(rule.http_rules.http_rules, factory.rule_class, secrets, place)
    elif kind == "kafka_rules":
        allow = _kafka_rules(rule.kafka_rules.kafka_rules, factory, f"{where}: kafka_rules")
    else:
        place = f"{where}: {parser} l7_allow_rules"
        allow = _l7_rules(rule.l7_rules.l7_allow_rules, factory, place)
    block = _l7_rules(rule.l7_rules.l7_deny_rules, factory, f"{where}: {parser} l7_deny_rules")
    return Rule(
        remotes,
        rule.precedence,
        parser=parser,
        rule_class=factory.rule_class,
        allow=allow,
        block=block,
    )


def _l7_rules(
    rules: Sequence[npds.L7NetworkPolicyRule], factory: RuleSource, where: str
) -> tuple[L7Rule, ...]:
    compiled = []
    for index, rule in enumerate(rules):
        if rule.metadata_rule:
            raise PolicyError(f"{where}[{index}]: metadata_rule is not for parsers")
        compiled.append(_l7_rule(dict(rule.rule), factory, f"{where}[{index}]"))
    return tuple(compiled)


def _l7_rule(pairs: Mapping[str, str], factory: RuleSource, where: str) -> L7Rule:
    try:
        return factory.rule_class(pairs)
    except RuleError as error:
        raise PolicyError(f"{where}: {error}") from error


def _http_rules(
    rules: Sequence[npds.HttpNetworkPolicyRule],
    rule_class: type[HttpRule],
    secrets: Secrets,
    where: str,
) -> tuple[HttpRule, ...]:
    compiled = []
    for index, rule in enumerate(rules):
        try:
            compiled.append(rule_class.from_proto(rule, secrets))
        except RuleError as error:
            raise PolicyError(f"{where}[{index}]: {error}") from error
    return tuple(compiled)


def _kafka_rules(
    rules: Sequence[npds.KafkaNetworkPolicyRule], factory: RuleSource, where: str
) -> tuple[L7Rule, ...]:
    """Cilium's own message for Kafka: one rule of ours per API key that it names."""
    compiled = []
    for index, rule in enumerate(rules):
        pairs = {"clientID": rule.client_id, "topic": rule.topic}
        # On the wire a version that is not given is 0; an empty rule means everything.
        if rule.api_version >= 0 and rule.ByteSize():
            pairs["apiVersion"] = str(rule.api_version)
        for key in rule.api_keys or ("",):
            pairs["apiKey"] = str(key)
            compiled.append(_l7_rule(pairs, factory, f"{where}[{index}]"))
    return tuple(compiled)
