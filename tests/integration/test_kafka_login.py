"""Clients that log in to a real Kafka (SASL) through a stock Envoy.

The password itself is the broker's business.  What is ours: that the frames of a log-in
are requests like others, that the policy holds behind it, and that the old log-in, whose
tokens nobody could tell from requests, is refused.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import confluent_kafka
import pytest

from demos.servers.kafka import NEW, OLD, PASSWORD, USER
from demos.servers.kafka import kafka as start_kafka
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from proxylib.proto.accesslog_pb2 import Denied, LogEntry
from tests.integration.kafka_clients import CLIENTS, TIMEOUT, confluent_consume, refused, words
from tests.integration.waiting import until
from tests.parsers.kafka.messages import framed, read_response, request

pytestmark = [
    pytest.mark.timeout(600),  # the first run downloads the jars
    # Clients that are told "no" leave a future or a thread behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

HOSTS = {OLD: "127.0.7.23", NEW: "127.0.7.24"}
TOPIC, SECRET = "topic1", "secret"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: both}}
spec:
  endpointSelector: {{matchLabels: {{app: kafka}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{port}", protocol: TCP}}]
          rules:
            kafka: [{{role: produce, topic: topic1}}, {{role: consume, topic: topic1}}]
"""


@dataclass
class Site:
    """Where clients go that log in, and what was logged."""

    proxy: str
    direct: str
    log: list[LogEntry]

    def connect(self) -> socket.socket:
        host, port = self.proxy.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=10)

    def denied(self) -> list[LogEntry]:
        return [entry for entry in self.log if entry.entry_type == Denied]


@pytest.fixture(scope="module", params=[OLD, NEW])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    host, folder = HOSTS[request.param], tmp_path_factory.mktemp("login")
    with start_kafka(request.param, host, passwords=True) as broker:
        behind = broker.behind[0]
        policy, endpoints = folder / "policy.yaml", folder / "endpoints.yaml"
        policy.write_text(POLICY.format(port=behind.upstream.port))
        endpoints.write_text(f"endpoints: [{{address: {host}, labels: {{app: kafka}}}}]\n")
        config = ProxyConfig(
            choose_parser("kafka"),
            behind.proxy,
            behind.upstream,
            policies=(policy,),
            endpoints=endpoints,
            watch=False,
        )
        site = Site(str(behind.proxy), str(broker.direct), [])
        direct = confluent_kafka.Producer({"bootstrap.servers": site.direct})
        for topic in (TOPIC, SECRET):
            direct.produce(topic, b"there")
        assert direct.flush(TIMEOUT) == 0
        with Proxy(config, on_entries=site.log.extend):
            yield site


def login(client: str, mechanism: str, password: str = PASSWORD) -> dict[str, Any]:
    """A client's options."""
    if client == "confluent-kafka":
        return {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanisms": mechanism,
            "sasl_username": USER,
            "sasl_password": password,
        }
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": USER,
        "sasl_plain_password": password,
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("client", CLIENTS)
def test_log_in(site: Site, client: str, mechanism: str) -> None:
    produce, consume = CLIENTS[client]
    options = login(client, mechanism)
    messages = words(20)
    produce(site.proxy, TOPIC, messages, **options)
    assert consume(site.proxy, TOPIC, messages, **options) == messages
    assert refused(lambda: produce(site.proxy, SECRET, [b"x"], **options))
    assert confluent_consume(site.direct, TOPIC, messages) == messages


def cannot_log_in(site: Site, **options: Any) -> None:
    """kafka-python, in a process of its own: a producer that did not come to be leaks."""
    options |= {"bootstrap_servers": site.proxy, "bootstrap_timeout_ms": 3000}
    options |= {"max_block_ms": 3000}
    program = f"import kafka; kafka.KafkaProducer(**{options!r}).send('{TOPIC}', b'x').get(5)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "kafka.errors." in done.stderr.splitlines()[-1]


def test_a_wrong_password_is_refused_by_the_broker(site: Site) -> None:
    cannot_log_in(site, **login("kafka-python", "PLAIN", "guess"))
    assert not any("Panic" in str(entry) for entry in site.log)


def test_the_old_log_in_is_refused(site: Site) -> None:
    """Version 0's tokens have no headers; and so have those of still older clients."""
    with site.connect() as connection:
        connection.sendall(request("SaslHandshake", 0, 7, Mechanism=b"PLAIN"))
        answer = connection.recv(1000)
        assert read_response("SaslHandshake", 0, answer)[1]["ErrorCode"] == 35
        # The client goes on with its token all the same: it goes nowhere.
        connection.sendall(framed(b"\0" + USER.encode() + b"\0" + PASSWORD.encode()))
        assert connection.recv(1000) == b""
    until(lambda: any("is not understood" in str(entry) for entry in site.denied()))
    gssapi = framed(b"\x60\x82\x02\x5f\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02" + b"x" * 600)
    with site.connect() as connection:
        connection.sendall(gssapi)
        assert connection.recv(1000) == b""


def test_an_old_client_that_logs_in_is_told_no(site: Site) -> None:
    options = login("kafka-python", "PLAIN")
    cannot_log_in(site, api_version=(0, 10), enable_idempotence=False, **options)
    assert any("SaslHandshake" in str(entry) for entry in site.denied())


def test_the_log_has_no_password(site: Site) -> None:
    assert site.log
    assert not any(PASSWORD in str(entry) for entry in site.log)
