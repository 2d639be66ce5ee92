"""Who may produce to a Kafka topic, and who may consume it.

A real Kafka behind Envoy; kafka-python is the client.  service1 may produce to topic1
and service2 consume it; alpine may consume msgs.  What each may do is a table here,
read off the policy by a human.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
)
from kafka.net import KafkaNetSocket

from demos.servers.kafka import NEW, Broker, kafka
from demos.stage import HERE, Stage, brief, confirmed, proxy, run_stories
from node.address import Address
from node.parsers import choose_parser
from node.run import ProxyConfig
from proxylib.accesslog import entry_to_json
from proxylib.proto.accesslog_pb2 import EntryType, LogEntry

POLICY = HERE / "kafka-topics.yaml"
PORT = 9092
SERVER, STRANGER = 10, 7
CLIENTS = {"alpine": 9, "service1": 11, "service2": 12}
"""Who, and the last part of their address."""

TOPIC, MSGS = "topic1", "msgs"
PATIENCE = 10.0
"""Seconds that a client waits for what it is allowed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Producing to a topic or consuming it, and who may."""

    verb: str
    topic: str
    allowed: str

    @property
    def api(self) -> str:
        """The API of it."""
        return {"produce": "Produce", "consume": "Fetch"}[self.verb]


ATTEMPTS = (
    Attempt("produce", TOPIC, "service1"),
    Attempt("produce", MSGS, ""),
    Attempt("consume", TOPIC, "service2"),
    Attempt("consume", MSGS, "alpine"),
)


class From(KafkaNetSocket):  # type: ignore[misc]
    """kafka-python's sockets, but from the address in ``proxy_url="from://ADDRESS"``."""

    SCHEMES = ("from",)

    def __init__(self, proxy_url: str) -> None:
        super().__init__(proxy_url)
        self._source = proxy_url.removeprefix("from://")

    def socket(self, *args: Any) -> socket.socket:
        made = socket.socket(*args)
        made.bind((self._source, 0))
        return made


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`."""
    stage.title("Topics of a Kafka (demos/kafka-topics.yaml)")
    # What the clients are told is in the table.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    server = stage.address(SERVER, PORT)
    stage.say(f"starting Kafka {NEW} (the first time, Maven gets its jars)")
    with kafka(NEW, server.host, port=PORT) as broker, stage.endpoints() as endpoints:
        _make_topics(broker)
        config = ProxyConfig(
            choose_parser("kafka"),
            # A broker tells its clients where to go: to this address.
            listen=broker.behind[0].proxy,
            upstream=server,
            policies=(POLICY,),
            endpoints=endpoints,
        )
        with proxy(stage, config) as (running, log):
            for who, host in CLIENTS.items():
                source = stage.address(host, 0).host
                for attempt in ATTEMPTS:
                    expected = "allowed" if who == attempt.allowed else "denied"
                    observed = _try(attempt, who, running.address, source)
                    entry = log.next(_about(attempt, source, observed))
                    what = f"{attempt.verb} {attempt.topic}"
                    stage.check(who, what, expected, confirmed(observed, entry), brief(entry))
            source = stage.address(STRANGER, 0).host
            observed = _try(ATTEMPTS[0], "a stranger", running.address, source)
            entry = log.request_of(source)
            stage.check("a stranger", "connect", "closed", confirmed(observed, entry), brief(entry))
        held = {topic: _consume(broker.direct, "", topic) for topic in (TOPIC, MSGS)}
        wanted = {TOPIC: [b"from service1"], MSGS: [b"from the start"]}
        stage.check("Kafka", "has what was allowed, only", True, held == wanted)


def _try(attempt: Attempt, who: str, to: Address, source: str) -> str:
    try:
        if attempt.verb == "produce":
            _produce(to, source, attempt.topic, f"from {who}".encode())
            return "allowed"
        return "allowed" if _consume(to, source, attempt.topic, who) else "denied"
    except AuthorizationError:
        return "denied"
    except KafkaTimeoutError:
        # It has tried to connect, again and again.
        return "closed"
    except KafkaError as error:
        return f"error: {error}"


def _produce(to: Address, source: str, topic: str, message: bytes) -> None:
    producer = KafkaProducer(max_block_ms=PATIENCE * 1000, **_options(to, source))
    try:
        producer.send(topic, message).get(PATIENCE)
    finally:
        producer.close(timeout=1)


def _consume(to: Address, source: str, topic: str, group: str | None = None) -> list[bytes]:
    """What the topic has; the client only waits in vain for one that is denied to it."""
    consumer = KafkaConsumer(
        topic,
        group_id=group,
        auto_offset_reset="earliest",
        consumer_timeout_ms=2000,
        **_options(to, source),
    )
    try:
        return [message.value for message in consumer]
    finally:
        consumer.close()


def _options(to: Address, source: str) -> dict[str, Any]:
    options: dict[str, Any] = {"bootstrap_servers": str(to), "bootstrap_timeout_ms": 5000}
    return {**options, "proxy_url": f"from://{source}"} if source else options


def _make_topics(broker: Broker) -> None:
    admin = KafkaAdminClient(**_options(broker.direct, ""))
    admin.create_topics([NewTopic(name, 1, 1) for name in (TOPIC, MSGS)])
    admin.close()
    _produce(broker.direct, "", MSGS, b"from the start")


def _about(attempt: Attempt, source: str, observed: str) -> Callable[[LogEntry], bool]:
    """Whether an entry is the decision that the client has felt."""

    def about(entry: LogEntry) -> bool:
        fields = entry_to_json(entry)["fields"]
        if not entry.source_address.startswith(f"{source}:"):
            return False
        if observed == "denied":
            # A request about a group names no topic.
            topics = fields.get("topics") or [attempt.topic]
            return entry.entry_type == EntryType.Denied and attempt.topic in topics
        return (
            entry.entry_type == EntryType.Request
            and fields["api"] == attempt.api
            and attempt.topic in fields["topics"]
        )

    return about


if __name__ == "__main__":
    raise SystemExit(run_stories(tell))
