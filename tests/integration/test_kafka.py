"""Real Kafka brokers, 3.9 and 4.3, behind a stock Envoy, with real clients.

service1 may produce to topic1 and service2 may consume it: each comes through a proxy
of its own, since a broker tells clients where to go by the listener they came to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiokafka
import confluent_kafka
import confluent_kafka.admin
import kafka
import kafka.errors
import pytest

from demos.servers.kafka import NEW, OLD, Broker
from demos.servers.kafka import kafka as start_kafka
from demos.servers.maven import jars
from node.parsers import choose_parser
from node.run import Proxy, ProxyConfig
from parsers.kafka import schema
from proxylib.accesslog import entry_to_json
from proxylib.proto.accesslog_pb2 import Denied as DENIED
from proxylib.proto.accesslog_pb2 import LogEntry
from tests.integration.kafka_clients import (
    CLIENTS,
    COMPRESSION,
    TIMEOUT,
    confluent_consume,
    confluent_produce,
    group,
    python_consume,
    python_produce,
    refused,
    words,
)
from tests.integration.waiting import until
from tests.parsers.kafka.messages import read_response, request

pytestmark = [
    pytest.mark.timeout(600),  # the first run downloads the jars
    # Clients that are told "no" leave a future or a thread behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

HOSTS = {OLD: "127.0.7.21", NEW: "127.0.7.22"}
TOPIC, SECRET = "topic1", "secret"
NO_KAFKA = f"a request of {int.from_bytes(b'GET ', 'big')} bytes"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: services}}
spec:
  endpointSelector: {{matchLabels: {{app: kafka}}}}
  ingress:
    - toPorts:
        - ports: [{{port: "{produce}", protocol: TCP}}]
          rules:
            kafka:
              - {{role: produce, topic: topic1}}
    - toPorts:
        - ports: [{{port: "{consume}", protocol: TCP}}]
          rules:
            kafka:
              - {{role: consume, topic: topic1}}
    - toPorts:
        - ports: [{{port: "{open}", protocol: TCP}}]
          rules:
            kafka: [{{}}]
"""


@dataclass
class Site:
    """A broker, and where its clients go: to the proxy of each role, or directly."""

    broker: Broker
    produce: str = ""
    consume: str = ""
    open: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)

    @property
    def direct(self) -> str:
        return str(self.broker.direct)

    def denied(self) -> list[dict[str, str]]:
        return [entry_to_json(e)["fields"] for e in self.log if e.entry_type == DENIED]


@pytest.fixture(scope="module", params=[OLD, NEW])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    version = request.param
    host = HOSTS[version]
    roles = ("produce", "consume", "open")
    folder = tmp_path_factory.mktemp("kafka")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_kafka(version, host, proxies=len(roles)))
        site = Site(broker)
        policy, endpoints = folder / "policy.yaml", folder / "endpoints.yaml"
        ports = {role: broker.behind[i].upstream.port for i, role in enumerate(roles)}
        policy.write_text(POLICY.format(**ports))
        endpoints.write_text(f"endpoints: [{{address: {host}, labels: {{app: kafka}}}}]\n")
        for role, behind in zip(roles, broker.behind, strict=True):
            config = ProxyConfig(
                choose_parser("kafka"),
                behind.proxy,
                behind.upstream,
                policies=(policy,),
                endpoints=endpoints,
                watch=False,
            )
            proxy = stack.enter_context(Proxy(config, on_entries=site.log.extend))
            setattr(site, role, str(behind.proxy))
            site.pids[role] = proxy.pid
        _create_topics(site)
        yield site


def _create_topics(site: Site) -> None:
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": site.direct})
    topics = [confluent_kafka.admin.NewTopic(name, 1) for name in (TOPIC, SECRET)]
    for made in admin.create_topics(topics).values():
        made.result(TIMEOUT)
    producer = confluent_kafka.Producer({"bootstrap.servers": site.direct})
    producer.produce(SECRET, b"hidden")
    producer.flush(TIMEOUT)


@pytest.mark.parametrize("client", CLIENTS)
def test_service1_produces_and_service2_consumes(site: Site, client: str) -> None:
    """In order, in a group, with a commit; and compressed."""
    produce, consume = CLIENTS[client]
    for options in ({}, COMPRESSION[client]):
        messages = words()
        produce(site.produce, TOPIC, messages, **options)
        assert consume(site.consume, TOPIC, messages) == messages


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_denied(site: Site, client: str) -> None:
    produce, consume = CLIENTS[client]
    assert refused(lambda: produce(site.produce, SECRET, [b"x"]))
    # The role may see the topic, and not produce to it.
    assert refused(lambda: produce(site.consume, TOPIC, [b"x"]))
    if client != "kafka-python":
        # kafka-python only logs it, and goes on waiting.
        assert refused(lambda: consume(site.consume, SECRET, [b"x"]))
    assert site.denied()


def test_a_consumer_of_a_denied_topic_gets_nothing(site: Site) -> None:
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=site.consume, consumer_timeout_ms=2000, auto_offset_reset="earliest"
    )
    assert TOPIC in consumer.topics()
    assert SECRET not in consumer.topics()
    consumer.assign([kafka.TopicPartition(SECRET, 0)])
    with contextlib.suppress(kafka.errors.KafkaError):
        assert list(consumer) == []
    consumer.close()


def test_a_producer_goes_on_after_a_denial(site: Site) -> None:
    messages = words(10)
    producer = kafka.KafkaProducer(bootstrap_servers=site.produce, max_block_ms=20_000)
    with pytest.raises(kafka.errors.TopicAuthorizationFailedError):
        producer.send(SECRET, b"x").get(TIMEOUT)
    for sent in [producer.send(TOPIC, message) for message in messages]:
        sent.get(TIMEOUT)
    producer.close(timeout=2)
    assert confluent_consume(site.consume, TOPIC, messages) == messages


@pytest.mark.parametrize("size", [100_000, 900_000])
def test_large_messages(site: Site, size: int) -> None:
    messages = [word + b"." * size for word in words(3)]
    confluent_produce(site.produce, TOPIC, messages)
    assert confluent_consume(site.consume, TOPIC, messages) == messages
    assert refused(lambda: confluent_produce(site.consume, TOPIC, messages))


def test_idempotence_and_a_transaction(site: Site) -> None:
    messages = words(20)
    confluent_produce(site.produce, TOPIC, messages, enable_idempotence=True)
    assert confluent_consume(site.consume, TOPIC, messages) == messages

    messages = words(20)
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": site.produce, "transactional.id": uuid.uuid4().hex}
    )
    producer.init_transactions(TIMEOUT)
    producer.begin_transaction()
    producer.produce(TOPIC, b"never")
    producer.flush(TIMEOUT)
    producer.abort_transaction(TIMEOUT)
    producer.begin_transaction()
    for message in messages:
        producer.produce(TOPIC, message)
    producer.commit_transaction(TIMEOUT)
    found = confluent_consume(site.consume, TOPIC, [b"never", *messages])
    assert found == messages


def test_transactions_of_the_others(site: Site) -> None:
    messages, more = words(10), words(5)
    producer = kafka.KafkaProducer(
        bootstrap_servers=site.produce, transactional_id=uuid.uuid4().hex, max_block_ms=20_000
    )
    producer.init_transactions()
    producer.begin_transaction()
    for sent in [producer.send(TOPIC, message) for message in messages]:
        sent.get(TIMEOUT)
    producer.commit_transaction()
    producer.close(timeout=2)

    async def again() -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=site.produce, transactional_id=uuid.uuid4().hex
        )
        async with producer, producer.transaction():
            for message in more:
                await producer.send_and_wait(TOPIC, message)

    asyncio.run(again())
    assert confluent_consume(site.consume, TOPIC, messages + more) == messages + more


def test_a_transaction_that_consumes_and_produces(site: Site) -> None:
    """The offsets of what was consumed are committed with what was produced."""
    messages, made = words(5), words(5)
    confluent_produce(site.produce, TOPIC, messages)
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": site.open,
            "group.id": group(),
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": site.open, "transactional.id": uuid.uuid4().hex}
    )
    producer.init_transactions(TIMEOUT)
    consumer.subscribe([TOPIC])
    while (message := consumer.poll(TIMEOUT)) is not None and message.value() != messages[-1]:
        assert message.error() is None
    producer.begin_transaction()
    for word in made:
        producer.produce(TOPIC, word)
    offsets = consumer.position(consumer.assignment())
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), TIMEOUT)
    producer.commit_transaction(TIMEOUT)
    assert consumer.committed(consumer.assignment(), TIMEOUT)[0].offset == offsets[0].offset
    consumer.close()
    assert confluent_consume(site.consume, TOPIC, made) == made


def test_a_transactional_producer_needs_the_role(site: Site) -> None:
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": site.consume, "transactional.id": uuid.uuid4().hex}
    )
    with pytest.raises(confluent_kafka.KafkaException) as caught:
        producer.init_transactions(TIMEOUT)
    code = caught.value.args[0].code()
    assert code == confluent_kafka.KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


OLD_VERSIONS = [(0, 8, 0), (0, 8, 1), (0, 8, 2), (0, 9), (0, 10), (0, 11), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("site", [OLD], indirect=True)
@pytest.mark.parametrize("version", OLD_VERSIONS, ids=str)
def test_old_clients(site: Site, version: tuple[int, ...]) -> None:
    """kafka-python held to what old brokers knew; 4.x itself no longer speaks it."""
    options: dict[str, Any] = {"api_version": version}
    messages = words(20)
    idempotence = {} if version >= (0, 11) else {"enable_idempotence": False}
    python_produce(site.produce, TOPIC, messages, **options, **idempotence)
    if version < (0, 9):
        options["group_id"] = None
    assert python_consume(site.consume, TOPIC, messages, **options) == messages
    options.pop("group_id", None)
    assert refused(lambda: python_produce(site.produce, SECRET, [b"x"], **options, **idempotence))


@pytest.mark.parametrize("site", [OLD], indirect=True)
def test_an_old_confluent_client(site: Site) -> None:
    old = {"api_version_request": False, "broker_version_fallback": "0.9.0.1"}
    messages = words(20)
    confluent_produce(site.produce, TOPIC, messages, **old)
    assert confluent_consume(site.consume, TOPIC, messages, **old) == messages


@pytest.mark.parametrize("site", [NEW], indirect=True)
def test_group_protocol_of_kip_848(site: Site) -> None:
    messages = words(20)
    confluent_produce(site.produce, TOPIC, messages)
    found = confluent_consume(site.consume, TOPIC, messages, group_protocol="consumer")
    assert found == messages
    assert any(e.kafka.fields["api"] == "ConsumerGroupHeartbeat" for e in site.log)


JAVA = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"]
PRODUCER = "org.apache.kafka.tools.ConsoleProducer"
CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer"
SHARE_CONSUMER = "org.apache.kafka.tools.consumer.ConsoleShareConsumer"


def java(program: str, server: str, topic: str, *more: str, messages: Sequence[bytes] = ()) -> str:
    """Run a console client of Kafka itself; returns what it says."""
    artifacts = [f"org.apache.kafka:kafka-tools:{NEW}", "org.slf4j:slf4j-simple:1.7.36"]
    class_path = jars(f"kafka-tools-{NEW}", artifacts)
    done = subprocess.run(
        [*JAVA, "-cp", class_path, program, "--bootstrap-server", server, "--topic", topic, *more],
        input=b"".join(message + b"\n" for message in messages),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


def test_the_java_client(site: Site) -> None:
    """The newest there is: on 4.3 it names topics by id, to produce as well."""
    seen = len(site.log)
    messages = words(5)
    java(PRODUCER, site.produce, TOPIC, messages=messages)
    said = java(
        CONSUMER, site.consume, TOPIC, "--from-beginning", "--timeout-ms", "4000"
    ).splitlines()
    assert [line for line in said if line.encode() in messages] == [m.decode() for m in messages]
    denied = "TopicAuthorizationException: Not authorized to access topics"
    assert f"{denied}: [{SECRET}]" in java(PRODUCER, site.produce, SECRET, messages=[b"x"])
    assert f"{denied}: [{TOPIC}]" in java(PRODUCER, site.consume, TOPIC, messages=[b"x"])
    assert f"{denied}: [{SECRET}]" in java(CONSUMER, site.consume, SECRET, "--timeout-ms", "4000")
    spoken = {(e.kafka.fields["api"], e.kafka.api_version) for e in site.log[seen:]}
    newest = {("Produce", 13), ("Fetch", 18)} if HOSTS[NEW] in site.direct else set()
    assert newest <= spoken


@pytest.mark.parametrize("site", [NEW], indirect=True)
def test_a_share_group(site: Site) -> None:
    """A queue (KIP-932): fetched and acknowledged by topic id, in sessions."""
    seen = len(site.log)
    messages = words(100)
    with ThreadPoolExecutor(1) as pool:
        arguments = ("--max-messages", "5", "--timeout-ms", "30000", "--group", group())
        said = pool.submit(java, SHARE_CONSUMER, site.consume, TOPIC, *arguments)
        # A new group begins at the end of the topic, at a time that only the broker knows.
        for message in messages:
            confluent_produce(site.produce, TOPIC, [message])
            if wait([said], 0.3).done:
                break
        lines = said.result(60).splitlines()
    assert len([line for line in lines if line.encode() in messages]) >= 5
    assert {"ShareGroupHeartbeat", "ShareFetch"} <= _apis(site.log[seen:])
    denied = "TopicAuthorizationException: Not authorized to access topics"
    assert denied in java(SHARE_CONSUMER, site.consume, SECRET, "--timeout-ms", "4000")


def _apis(log: list[LogEntry]) -> set[str]:
    return {entry.kafka.fields["api"] for entry in log}


def test_admin_needs_a_rule(site: Site) -> None:
    topic = f"made-{uuid.uuid4().hex}"
    made = [confluent_kafka.admin.NewTopic(topic, 1)]
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": site.produce})
    with pytest.raises(confluent_kafka.KafkaException):
        admin.create_topics(made, request_timeout=5)[topic].result(TIMEOUT)
    assert topic not in admin.list_topics(timeout=TIMEOUT).topics
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": site.open})
    admin.create_topics(made, request_timeout=5)[topic].result(TIMEOUT)
    assert {topic, TOPIC, SECRET} <= admin.list_topics(timeout=TIMEOUT).topics.keys()


def test_every_version_that_is_advertised_is_understood(site: Site) -> None:
    """The broker's own ApiVersions, directly and through the proxy."""
    found = {}
    for name, server in (("direct", site.direct), ("proxy", site.open)):
        host, port = server.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                request("ApiVersions", 3, ClientSoftwareName=b"a", ClientSoftwareVersion=b"1")
            )
            data = b""
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                data += connection.recv(65536)
        found[name] = {
            key["ApiKey"]: (key["MinVersion"], key["MaxVersion"])
            for key in read_response("ApiVersions", 3, data)[1]["ApiKeys"]
        }
    assert found["direct"].pop(17) == (0, 1)
    assert found["proxy"].pop(17) == (1, 1)
    assert found["proxy"] == found["direct"]
    assert len(found["direct"]) + 1 == (61 if HOSTS[OLD] in site.direct else 75)
    assert all((key, high) in schema.UNDERSTOOD for key, (_, high) in found["direct"].items())


def test_what_no_broker_can_answer_closes_and_is_logged(site: Site) -> None:
    host, port = site.open.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    until(lambda: any("Parser error" in entry.get("status", "") for entry in site.denied()))


def test_the_log_of_an_exchange(site: Site) -> None:
    seen = len(site.log)
    messages = words(1)
    name = f"client-{uuid.uuid4().hex}"
    confluent_produce(site.produce, TOPIC, messages, client_id=name)

    def entries() -> list[LogEntry]:
        return [e for e in site.log[seen:] if e.kafka.fields["api"] == "Produce"]

    until(lambda: len(entries()) >= 2)
    sent, replied = entries()[:2]
    assert list(sent.kafka.topics) == [TOPIC]
    assert sent.kafka.fields["client_id"] == name
    assert (sent.entry_type, replied.entry_type) == (0, 1)
    assert replied.kafka.error_code == 0
    assert replied.kafka.correlation_id == sent.kafka.correlation_id
    assert 0 < replied.latency < 10**10


def test_many_clients_at_once(site: Site) -> None:
    batches = [words(50) for _ in range(6)]
    barrier = threading.Barrier(len(batches))

    def run(messages: list[bytes]) -> list[bytes]:
        barrier.wait(TIMEOUT)
        confluent_produce(site.produce, TOPIC, messages)
        return confluent_consume(site.consume, TOPIC, messages)

    with ThreadPoolExecutor(len(batches)) as pool:
        assert list(pool.map(run, batches)) == batches


def test_nothing_panicked(site: Site) -> None:
    """Last: what the tests before have left in the log."""
    statuses = [entry.get("status", "") for entry in site.denied()]
    assert not [status for status in statuses if "Panic" in status]
    assert [s for s in statuses if "Parser error" in s and NO_KAFKA not in s] == []
    for role, pid in site.pids.items():
        assert Path(f"/proc/{pid}").exists(), role
    assert len(site.log) > 1000
    assert not list(itertools.filterfalse(lambda e: e.policy_name, site.log))
