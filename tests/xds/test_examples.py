"""The example documents load as they stand, and mean what the text beside them says.

Each case is a document (or several) and what becomes of connections between the
endpoints of one world under it, at both ends: as the engine's own map says it, which
is what the data path looks up in.  A name behind ``->`` is the parser that judges.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest

import parsers.cassandra
import parsers.http
import parsers.kafka
import parsers.memcache  # noqa: F401 - they register their parsers
from tests.xds.conftest import EXAMPLES
from xds.documents import load_policies
from xds.endpoints import load_endpoints, load_services
from xds.engine import Change, Engine
from xds.mapstate import PROTOCOL_NUMBERS
from xds.source import DocumentError, read_documents
from xds.trace import End, Question, trace
from xds.trace_request import parse_fields, parse_http

ENDPOINTS = """
endpoints:
- {address: 10.0.1.1, labels: {role: frontend}}
- {address: 10.0.1.2, labels: {role: backend}}
- {address: 10.0.1.3, labels: {role: victim}}
- {address: 10.0.1.4, labels: {role: restricted}}
- {address: 10.0.1.5, labels: {role: crawler}}
- {address: 10.0.1.6, labels: {role: public}}
- {address: 10.0.1.7, labels: {env: prod, role: frontend}}
- {address: 10.0.1.8, labels: {env: prod}}
- {address: 10.0.1.9, labels: {env: dev}}
- {address: 10.0.2.1, labels: {app: alpine}}
- {address: 10.0.2.2, labels: {app: ubuntu}}
- {address: 10.0.2.3, labels: {app: nginx}}
- {address: 10.0.2.4, labels: {app: kafka}}
- {address: 10.0.2.5, labels: {app: cass-server}}
- {address: 10.0.2.6, labels: {app: memcached}}
- {address: 10.0.2.7, labels: {function: fleet-maintenance}}
- {address: 10.0.2.8, labels: {function: fleet-monitoring}}
- {address: 10.0.2.9, labels: {role: jedi}}
- {address: 10.0.2.10, labels: {app: service}}
- {address: 10.0.2.11, labels: {app: myService}}
- {address: 10.0.2.12, labels: {app: test-app}}
- {address: 10.0.2.13, labels: {id: app2}}
- address: 10.0.3.1
  namespace: kube-system
  labels: ["k8s:k8s-app=kube-dns", "k8s:io.cilium.k8s.policy.serviceaccount=kube-dns"]
- {address: 10.0.3.2, namespace: default, labels: {app: mine}}
- {address: 10.0.3.3, labels: {app: alpine, io.cilium.k8s.policy.cluster: k8s}}
- {address: 10.0.3.4, labels: {app: nginx, io.cilium.k8s.policy.cluster: tke}}
- {address: 10.0.3.5, labels: {app: nginx, io.cilium.k8s.policy.cluster: k8s}}
- {address: 10.0.4.1, labels: ["reserved:host", "k8s:type=ingress-worker"]}
- {address: 10.0.4.2, labels: ["reserved:remote-node"]}
- {address: 10.0.4.3, labels: ["reserved:health"]}
- {address: 10.0.4.4, labels: ["reserved:remote-node", "reserved:kube-apiserver"]}
services:
- {name: myservice, namespace: default, selector: {app: mine}}
- {name: elsewhere, namespace: default, labels: {head: none}, addresses: [203.0.113.9]}
"""

NAMES = {
    **{"frontend": "10.0.1.1", "backend": "10.0.1.2", "victim": "10.0.1.3"},
    **{"restricted": "10.0.1.4", "crawler": "10.0.1.5", "public": "10.0.1.6"},
    **{"prod-frontend": "10.0.1.7", "prod": "10.0.1.8", "dev": "10.0.1.9"},
    **{"alpine": "10.0.2.1", "ubuntu": "10.0.2.2", "nginx": "10.0.2.3", "kafka": "10.0.2.4"},
    **{"cass-server": "10.0.2.5", "memcached": "10.0.2.6", "maintenance": "10.0.2.7"},
    **{"monitoring": "10.0.2.8", "jedi": "10.0.2.9", "service": "10.0.2.10"},
    **{"myService": "10.0.2.11", "test-app": "10.0.2.12", "app2": "10.0.2.13"},
    **{"kube-dns": "10.0.3.1", "mine": "10.0.3.2", "alpine@k8s": "10.0.3.3"},
    **{"nginx@tke": "10.0.3.4", "nginx@k8s": "10.0.3.5"},
    **{"host": "10.0.4.1", "remote-node": "10.0.4.2", "health": "10.0.4.3"},
    "apiserver": "10.0.4.4",
    **{"outside": "198.51.100.200", "remote": "198.51.100.1", "registry": "198.51.100.2"},
}
"""What the cases call the addresses; other addresses stand for themselves."""

DNS = {
    "my-remote-service.com": [IPv4Address(NAMES["remote"])],
    "docker.gmem.cc": [IPv4Address(NAMES["registry"])],
}

CASES = {
    "l3-rule": """
        frontend > backend 80/TCP allowed
        frontend > backend 53/UDP allowed
        backend > frontend 80/TCP allowed
        jedi > backend 80/TCP denied
        outside > backend 80/TCP denied""",
    "allow-all-to-victim": """
        frontend > victim 80/TCP allowed
        jedi > victim 1/UDP allowed
        outside > victim 80/TCP denied""",
    "l3-egress-rule": """
        frontend > backend 80/TCP allowed
        frontend > victim 80/TCP denied
        frontend > outside 80/TCP denied
        jedi > frontend 80/TCP allowed""",
    "allow-all-from-frontend": """
        frontend > backend 80/TCP allowed
        frontend > outside 80/TCP denied""",
    "deny-all-egress": """
        restricted > backend 80/TCP denied
        restricted > outside 80/TCP denied
        frontend > restricted 80/TCP allowed""",
    "requires-rule": """
        prod-frontend > prod 80/TCP denied
        frontend > prod 80/TCP denied
        frontend > dev 80/TCP allowed""",
    "requires-rule + l3-rule-prod": """
        prod-frontend > prod 80/TCP allowed
        frontend > prod 80/TCP denied
        prod > prod-frontend 80/TCP denied""",
    "l3-rule-prod": """
        prod-frontend > prod 80/TCP allowed
        frontend > prod 80/TCP allowed""",
    "service-rule": """
        app2 > mine 80/TCP allowed
        app2 > backend 80/TCP denied
        app2 > 203.0.113.9 80/TCP denied""",
    "service-labels-rule": """
        app2 > 203.0.113.9 80/TCP allowed
        app2 > 203.0.113.8 80/TCP denied
        app2 > mine 80/TCP denied""",
    "dev-to-host": """
        dev > host 80/TCP allowed
        dev > remote-node 80/TCP denied
        dev > backend 80/TCP denied""",
    "to-dev-from-nodes-in-cluster": """
        host > dev 80/TCP allowed
        remote-node > dev 80/TCP allowed
        outside > dev 80/TCP denied
        backend > dev 80/TCP denied""",
    "from-world-to-role-public": """
        outside > public 80/TCP allowed
        backend > public 80/TCP denied
        host > public 80/TCP denied""",
    "cidr-rule": """
        myService > 20.1.1.1 80/TCP allowed
        myService > 20.1.1.2 80/TCP denied
        myService > 10.200.0.1 80/TCP allowed
        myService > 10.96.0.1 80/TCP denied
        myService > 10.111.255.255 80/TCP denied
        myService > 10.112.0.0 80/TCP allowed
        myService > backend 80/TCP denied""",
    "l4-rule-egress": """
        myService > backend 80/TCP allowed
        myService > outside 80/TCP allowed
        myService > backend 81/TCP denied
        myService > backend 80/UDP denied""",
    "l4-rule-ingress": """
        frontend > backend 80/TCP allowed
        frontend > backend 81/TCP denied
        jedi > backend 80/TCP denied""",
    "cidr-l4-rule": """
        crawler > 192.0.2.7 80/TCP allowed
        crawler > 192.0.2.7 81/TCP denied
        crawler > 192.0.3.7 80/TCP denied""",
    "external-lockdown": """
        frontend > backend 80/TCP allowed
        host > backend 80/TCP allowed
        outside > backend 80/TCP denied
        backend > outside 80/TCP allowed""",
    "allow-cross-cluster": """
        alpine@k8s > nginx@tke 80/TCP allowed
        alpine@k8s > nginx@k8s 80/TCP denied
        alpine > nginx@k8s 80/TCP allowed""",
    "nginx-ingress-l4": """
        alpine > nginx 80/TCP allowed
        ubuntu > nginx 80/TCP denied
        alpine > nginx 81/TCP denied""",
    "to-fqdn-example": """
        test-app > remote 443/TCP allowed
        test-app > registry 443/TCP denied
        test-app > kube-dns 53/UDP allowed
        test-app > kube-dns 53/TCP denied""",
    "to-fqdn": """
        test-app > remote 443/TCP allowed
        test-app > registry 443/TCP allowed
        test-app > outside 443/TCP denied
        test-app > kube-dns 53/UDP -> dns
        test-app > kube-dns 53/TCP -> dns""",
    "nginx-egress": """
        nginx > registry 443/TCP allowed
        nginx > remote 443/TCP denied
        nginx > backend 80/TCP denied
        nginx > kube-dns 53/UDP -> dns""",
    "kafka-rule2": """
        alpine > kafka 9092/TCP -> kafka
        ubuntu > kafka 9092/TCP denied
        alpine > kafka 9093/TCP denied""",
    "secure-empire-cassandra": """
        alpine > cass-server 9042/TCP -> cassandra
        ubuntu > cass-server 9042/TCP denied""",
    "secure-rebel-alliance-memcache": """
        maintenance > memcached 11211/TCP denied
        monitoring > memcached 11211/TCP -> memcache
        jedi > memcached 11211/TCP -> memcache
        frontend > memcached 11211/TCP denied""",
    "http-rule1": """
        prod > service 80/TCP -> http
        dev > service 80/TCP denied
        prod > service 81/TCP denied""",
    "http-l7-rule": """
        outside > myService 80/TCP -> http
        frontend > myService 81/TCP denied""",
    "nginx-ingress-l7": """
        alpine > nginx 80/TCP -> http
        ubuntu > nginx 80/TCP denied""",
    "grpc-rule1": """
        alpine > nginx 80/TCP -> http
        ubuntu > nginx 80/TCP denied""",
    "l7-visibility-tls": """
        ubuntu > registry 443/TCP -> http
        ubuntu > registry 80/TCP denied
        ubuntu > remote 443/TCP denied
        ubuntu > kube-dns 53/UDP -> dns""",
}


REQUESTS = {
    "http-rule1": """
        prod > service 80 allowed GET /public
        prod > service 80 denied  GET /public/more
        prod > service 80 denied  POST /public
        dev > service 80 denied  GET /public""",
    "http-l7-rule": """
        outside > myService 80 allowed GET /path1
        outside > myService 80 denied  GET /path2
        outside > myService 80 denied  PUT /path2
        outside > myService 80 allowed PUT /path2 | X-My-Header: true
        outside > myService 80 denied  PUT /path2 | X-My-Header: false""",
    "nginx-ingress-l7": """
        alpine > nginx 80 denied  HEAD /
        alpine > nginx 80 denied  HEAD /welcome
        alpine > nginx 80 allowed GET /welcome
        ubuntu > nginx 80 denied  GET /welcome""",
    "grpc-rule1": """
        alpine > nginx 80 allowed POST /gmem.UserManager/GetName
        alpine > nginx 80 denied  POST /gmem.UserManager/DelName""",
    "l7-visibility-tls": """
        ubuntu > registry 443 allowed GET /anything
        ubuntu > registry 443 allowed DELETE /""",
    "kafka-rule2": """
        alpine > kafka 9092 allowed api_key=fetch topic=msgs
        alpine > kafka 9092 denied  api_key=fetch topic=other
        alpine > kafka 9092 denied  api_key=produce topic=msgs""",
    "secure-empire-cassandra": """
        alpine > cass-server 9042 allowed query_action=select query_table=system.local
        alpine > cass-server 9042 allowed query_action=select query_table=system_schema.keys
        alpine > cass-server 9042 allowed query_action=insert query_table=attendance.daily_records
        alpine > cass-server 9042 denied  query_action=select query_table=attendance.daily_records
        alpine > cass-server 9042 denied  query_action=delete query_table=system.local""",
    "secure-rebel-alliance-memcache": """
        monitoring > memcached 11211 allowed command=get key=alliance/fleet/x
        monitoring > memcached 11211 denied  command=get key=alliance/x
        monitoring > memcached 11211 denied  command=set key=alliance/fleet/x
        jedi > memcached 11211 allowed command=set key=anything
        jedi > memcached 11211 allowed command=flush_all
        maintenance > memcached 11211 denied  command=get key=alliance/fleet/x""",
}
"""What may be said on the connections, and headers behind a bar."""


def text(name: str) -> str:
    return (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")


class World:
    """The endpoints of above, under some policies."""

    def __init__(self, policies: str) -> None:
        documents = read_documents("endpoints.yaml", ENDPOINTS)
        self.engine = Engine()
        self.engine.change(
            Change(
                policies={"policies": load_policies(read_documents("p.yaml", policies))},
                endpoints=dict(enumerate(load_endpoints(documents), 1)),
                services=load_services(documents).resolve,
                names=DNS,
            )
        )
        self.numbers = {e.addresses[0]: n for n, e in self.engine.endpoints.items()}
        self.identities = self.engine.addresses()

    def identity(self, address: str) -> int:
        """Of the endpoint, else of the longest prefix, else the world's."""
        if address in self.identities:
            return self.identities[address]
        lengths = range(32, -1, -1)
        value = int(ip_address(address))
        prefixes = (f"{IPv4Address(value >> (32 - n) << (32 - n))}/{n}" for n in lengths)
        return next((self.identities[p] for p in prefixes if p in self.identities), 2)

    def verdict(self, client: str, server: str, port: int, protocol: str) -> str:
        """What becomes of a connection, egress and ingress together."""
        parser = ""
        ends = ((client, server, False), (server, client, True))
        for subject, remote, ingress in ends:
            number = self.numbers.get(NAMES.get(subject, subject))
            if number is None:
                continue
            found = self.engine.map_state(number).lookup(
                self.identity(NAMES.get(remote, remote)),
                ingress=ingress,
                protocol=PROTOCOL_NUMBERS[protocol],
                port=port,
            )
            if not found.passes:
                return "denied"
            parser = parser or found.redirect
        return f"-> {parser}" if parser else "allowed"


def check(policies: str, flows: str) -> None:
    world = World(policies)
    for flow in flows.strip().splitlines():
        client, _, server, at, expected = flow.split(maxsplit=4)
        port, protocol = at.split("/")
        found = world.verdict(client, server, int(port), protocol)
        assert f"{client} > {server} {at} {found}" == f"{client} > {server} {at} {expected}"


@pytest.mark.parametrize("names", CASES)
def test_verdicts(names: str) -> None:
    check("\n---\n".join(map(text, names.split(" + "))), CASES[names])


def check_requests(policies: str, lines: str) -> None:
    world = World(policies)
    for line in lines.strip().splitlines():
        client, _, server, port, expected, said = line.split(maxsplit=5)
        what, *headers = said.split(" | ")
        request = parse_fields(what) if "=" in what else parse_http(what, headers)
        ends = (End(address=NAMES[client]), End(address=NAMES[server]))
        found = trace(world.engine, Question(*ends, int(port), request=request))
        assert f"{line}: {found.verdict}" == f"{line}: {expected}"
        assert found.agrees


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(name: str) -> None:
    check_requests(text(name), REQUESTS[name])


def test_the_misspelt_label_is_the_only_thing_wrong() -> None:
    """The text says fleet-maintenance, the document fleet-maintanence."""
    document = text("secure-rebel-alliance-memcache").replace("maintanence", "maintenance")
    check(document, "maintenance > memcached 11211/TCP -> memcache")
    check_requests(
        document,
        """
        maintenance > memcached 11211 allowed command=get key=alliance/fleet/x
        maintenance > memcached 11211 allowed command=set key=alliance/fleet/x
        maintenance > memcached 11211 denied  command=set key=alliance/x
        monitoring > memcached 11211 denied  command=set key=alliance/fleet/x""",
    )


def test_names_with_a_port() -> None:
    """A fragment: the subdomains of gmem.cc, at port 443 only."""
    head = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n"
    check(
        head + "  endpointSelector: {matchLabels: {app: nginx}}\n  egress:\n  - toFQDNs:\n"
        '    - matchPattern: "*.gmem.cc"\n    toPorts:\n    - ports:\n'
        '      - port: "443"\n        protocol: TCP\n',
        """
        nginx > registry 443/TCP allowed
        nginx > registry 80/TCP denied
        nginx > remote 443/TCP denied""",
    )


HEAD = "kind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"


def test_entities_that_the_examples_do_not_have() -> None:
    check(
        HEAD + "  ingress:\n  - fromEntities: [remote-node, world-ipv4]\n"
        "  ingressDeny:\n  - fromEntities: [kube-apiserver]\n",
        """
        remote-node > backend 80/TCP allowed
        apiserver > backend 80/TCP denied
        outside > backend 80/TCP allowed
        frontend > backend 80/TCP denied
        host > backend 80/TCP denied""",
    )
    check(
        HEAD + "  ingress:\n  - fromEntities: [cluster]\n",
        """
        apiserver > backend 80/TCP allowed
        frontend > backend 80/TCP allowed
        nginx@tke > backend 80/TCP denied
        outside > backend 80/TCP denied""",
    )


def test_a_placeholder_is_no_port_and_the_rest_is_about_nodes() -> None:
    document = text("lock-down-ingress-worker-node")
    with pytest.raises(DocumentError) as caught:
        load_policies(read_documents("p.yaml", document))
    (problem,) = caught.value.problems
    assert problem.place.path == "spec.ingress[1].toPorts[0].ports[5].port"
    assert "'REMOVE_ME_AFTER_DOUBLE_CHECKING_PORTS' is neither a port number" in problem.message
    before, _, after = document.partition('      - port: "REMOVE_ME')
    check(
        before + "\n".join(after.splitlines()[2:]),
        """
        remote-node > host 9999/TCP allowed
        health > host 9999/TCP allowed
        outside > host 22/TCP allowed
        outside > host 6443/TCP allowed
        outside > host 8472/UDP allowed
        outside > host 8472/TCP denied
        outside > host 9999/TCP denied
        outside > backend 9999/TCP allowed""",
    )


def test_what_is_not_nested_right_is_refused_with_every_place() -> None:
    with pytest.raises(DocumentError) as caught:
        load_policies(read_documents("p.yaml", text("misnested-empire-cassandra")))
    paths = {problem.place.path for problem in caught.value.problems}
    assert {"metadata", "name", "ingress"} <= paths


@pytest.mark.parametrize("name", ["node-local-dns", "lrp-addr", "lrp-svc"])
def test_local_redirects_are_no_policies(name: str) -> None:
    with pytest.raises(DocumentError, match="unknown kind 'CiliumLocalRedirectPolicy'"):
        load_policies(read_documents("p.yaml", text(name)))


def test_every_example_has_its_case() -> None:
    told = {name for names in CASES for name in names.split(" + ")}
    apart = {
        *("lock-down-ingress-worker-node", "misnested-empire-cassandra"),
        *("node-local-dns", "lrp-addr", "lrp-svc"),
    }
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == told | apart
