"""Three Kafka clients behind one interface: produce a list, or consume until it is there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka
import kafka.errors

TIMEOUT = 20.0


def words(count: int = 100) -> list[bytes]:
    """Messages that nobody else sends."""
    prefix = uuid.uuid4().hex
    return [f"{prefix}-{number}".encode() for number in range(count)]


def group() -> str:
    return f"group-{uuid.uuid4().hex}"


def python_produce(server: str, topic: str, messages: list[bytes], **options: Any) -> None:
    producer = kafka.KafkaProducer(bootstrap_servers=server, max_block_ms=20_000, **options)
    try:
        for sent in [producer.send(topic, message) for message in messages]:
            sent.get(TIMEOUT)
    finally:
        producer.close(timeout=2)


def python_consume(server: str, topic: str, wanted: list[bytes], **options: Any) -> list[bytes]:
    consumer = kafka.KafkaConsumer(
        topic,
        bootstrap_servers=server,
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
        **{"group_id": group(), **options},
    )
    try:
        found = [m.value for m in _until_last(iter(consumer), wanted, lambda m: m.value)]
        if options.get("group_id", "") is not None:
            consumer.commit()
        return [value for value in found if value in set(wanted)]
    finally:
        consumer.close()


def confluent_produce(server: str, topic: str, messages: list[bytes], **options: Any) -> None:
    errors: list[Any] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            errors.append(error)

    producer = confluent_kafka.Producer({"bootstrap.servers": server, **_dotted(options)})
    for message in messages:
        producer.produce(topic, message, on_delivery=delivered)
    assert producer.flush(TIMEOUT) == 0
    if errors:
        raise confluent_kafka.KafkaException(errors[0])


def confluent_consume(server: str, topic: str, wanted: list[bytes], **options: Any) -> list[bytes]:
    settings = {
        "bootstrap.servers": server,
        "group.id": group(),
        "auto.offset.reset": "earliest",
        **_dotted(options),
    }
    consumer = confluent_kafka.Consumer(settings)
    consumer.subscribe([topic])

    def messages() -> Iterator[Any]:
        while (message := consumer.poll(TIMEOUT)) is not None:
            if message.error():
                raise confluent_kafka.KafkaException(message.error())
            yield message

    try:
        found = [m.value() for m in _until_last(messages(), wanted, lambda m: m.value())]
        consumer.commit(asynchronous=False)
        return [value for value in found if value in set(wanted)]
    finally:
        consumer.close()


def _dotted(options: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in options.items()}


def aio_produce(server: str, topic: str, messages: list[bytes], **options: Any) -> None:
    async def run() -> None:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=server, **options)
        try:
            await producer.start()
            for message in messages:
                await asyncio.wait_for(producer.send_and_wait(topic, message), TIMEOUT)
        finally:
            await producer.stop()

    asyncio.run(run())


def aio_consume(server: str, topic: str, wanted: list[bytes], **options: Any) -> list[bytes]:
    async def run() -> list[bytes]:
        consumer = aiokafka.AIOKafkaConsumer(
            topic,
            bootstrap_servers=server,
            group_id=group(),
            auto_offset_reset="earliest",
            **options,
        )
        try:
            await consumer.start()
            found = []
            while not found or found[-1] != wanted[-1]:
                found.append((await asyncio.wait_for(consumer.getone(), TIMEOUT)).value)
            await consumer.commit()
            return [value for value in found if value in set(wanted)]
        finally:
            await consumer.stop()

    return asyncio.run(run())


def _until_last(messages: Iterator[Any], wanted: list[bytes], value: Any) -> Iterator[Any]:
    for message in messages:
        yield message
        if value(message) == wanted[-1]:
            return


Produce = Callable[..., None]
Consume = Callable[..., list[bytes]]

CLIENTS = {
    "kafka-python": (python_produce, python_consume),
    "confluent-kafka": (confluent_produce, confluent_consume),
    "aiokafka": (aio_produce, aio_consume),
}
COMPRESSION = {
    "kafka-python": {"compression_type": "lz4"},
    "confluent-kafka": {"compression.type": "lz4"},
    "aiokafka": {"compression_type": "lz4"},
}


REFUSED = (
    kafka.errors.TopicAuthorizationFailedError,
    aiokafka.errors.TopicAuthorizationFailedError,
)


def refused(do: Callable[[], object]) -> bool:
    """Whether the client says that it is the topic that is not allowed."""
    try:
        do()
    except REFUSED:
        return True
    except confluent_kafka.KafkaException as error:
        code: int = error.args[0].code()
        return code == confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED
    return False
