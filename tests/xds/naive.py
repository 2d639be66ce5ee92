"""The meaning of policies told a second time, naively: for every question, from the documents.

Nothing of xds/ is used but what reads YAML nowhere: documents here are plain values.
`World` is what there is, `World.judge` says what becomes of one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request. remote: the peer's address."""

    endpoint: str
    ingress: bool
    remote: str
    protocol: str
    port: int
    cmd: str


@dataclass
class World:
    """documents by name; endpoints by address, as an endpoints file has them; DNS names."""

    documents: dict[str, Document] = field(default_factory=dict)
    endpoints: dict[str, Document] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    mode: str = "default"

    def judge(self, request: Request) -> tuple[bool, bool]:
        """Whether the request passes, and whether it would without any audit mode."""
        me = self.endpoints[request.endpoint]
        mine = [d for d in self.documents.values() if selects(spec(d)["endpointSelector"], me)]
        enforced = [d for d in mine if not audits(d)]
        mode = me.get("enforcement", "default")
        mode = self.mode if mode == "default" else mode
        would = self._allowed(mine, request, mode)
        return me.get("audit", False) or self._allowed(enforced, request, mode), would

    def _allowed(self, documents: list[Document], request: Request, mode: str) -> bool:
        if mode == "never":
            return True
        for deny in (True, False):
            found = [rule for document in documents for rule in rules(document, request, deny)]
            required = [selector for rule in found for selector in needs(rule)]
            if any(self._covers(r, request) and self._meets(r, required, request) for r in found):
                return not deny
        return mode == "default" and not any(white_list(d, request) for d in documents)

    def _meets(self, rule: Document, required: list[Document], request: Request) -> bool:
        if not rule.keys() & {"fromEndpoints", "toEndpoints"}:
            return True
        peer = self.endpoints[request.remote]
        return all(selects(selector, peer) for selector in required)

    def _covers(self, rule: Document, request: Request) -> bool:
        if not rule.keys() - {"fromRequires", "toRequires"}:
            return False
        return self._peer(rule, request) and self._ports(rule, request)

    def _peer(self, rule: Document, request: Request) -> bool:
        remote = self.endpoints.get(request.remote)
        for key, value in rule.items():
            match key:
                case "fromEndpoints" | "toEndpoints":
                    return remote is not None and any(selects(s, remote) for s in value)
                case "fromEntities" | "toEntities":
                    family = f"world-ipv{ip_address(request.remote).version}"
                    world = ("all", "world", family) if remote is None else ("all",)
                    return any(entity in world for entity in value)
                case "fromCIDRSet" | "toCIDRSet":
                    return remote is None and any(in_cidr(item, request.remote) for item in value)
                case "toFQDNs":
                    found = {a for n, held in self.names.items() if named(value, n) for a in held}
                    return remote is None and request.remote in found
        return True

    def _ports(self, rule: Document, request: Request) -> bool:
        if "toPorts" not in rule:
            return True
        holder = self.endpoints.get(request.endpoint if request.ingress else request.remote, {})
        for entry in rule["toPorts"]:
            for port in entry["ports"]:
                if port.get("protocol", "ANY") not in ("ANY", request.protocol):
                    continue
                first = port["port"]
                if isinstance(first, str):
                    if (request.protocol, request.port) != (
                        "TCP",
                        holder.get("ports", {}).get(first),
                    ):
                        continue
                elif first and not first <= request.port <= port.get("endPort", first):
                    continue
                wanted = entry.get("rules", {}).get("l7", [{}])
                if any(item.get("cmd", request.cmd) == request.cmd for item in wanted):
                    return True
        return False


def spec(document: Document) -> Document:
    found: Document = document["spec"]
    return found


def audits(document: Document) -> bool:
    return "annotations" in document["metadata"]


def rules(document: Document, request: Request, deny: bool) -> Iterator[Document]:
    direction = "ingress" if request.ingress else "egress"
    yield from spec(document).get(direction + ("Deny" if deny else ""), ())


def needs(rule: Document) -> list[Document]:
    return [*rule.get("fromRequires", ()), *rule.get("toRequires", ())]


def white_list(document: Document, request: Request) -> bool:
    direction = "ingress" if request.ingress else "egress"
    has_rules = any(spec(document).get(key) for key in (direction, f"{direction}Deny"))
    said: bool = spec(document).get("enableDefaultDeny", {}).get(direction, has_rules)
    return said


def selects(selector: Document, endpoint: Document) -> bool:
    labels = endpoint["labels"]
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        (labels.get(e["key"]) in e["values"]) == (e["operator"] == "In")
        for e in selector.get("matchExpressions", ())
    )


def in_cidr(item: Document, address: str) -> bool:
    def within(text: str) -> bool:
        return ip_address(address) in ip_network(text)

    return within(item["cidr"]) and not any(map(within, item.get("except", ())))


def named(selectors: list[Document], name: str) -> bool:
    return any(
        s.get("matchName") == name or ("matchPattern" in s and fnmatchcase(name, s["matchPattern"]))
        for s in selectors
    )
