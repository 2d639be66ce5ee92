"""What a rule's ``role`` and ``apiKey`` stand for, as tables of API keys.

The roles are Cilium's, with what today's clients (Java, librdkafka, kafka-python,
aiokafka) send besides for plain producing and consuming.
"""

from __future__ import annotations

from parsers.kafka.schema import APIS

PRODUCE, FETCH, LIST_OFFSETS, METADATA = 0, 1, 2, 3
OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 8, 9, 10
JOIN_GROUP, HEARTBEAT, LEAVE_GROUP, SYNC_GROUP = 11, 12, 13, 14
CONTROLLED_SHUTDOWN = 7
SASL_HANDSHAKE, API_VERSIONS, INIT_PRODUCER_ID = 17, 18, 22
OFFSET_FOR_LEADER_EPOCH = 23
ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 24, 25, 26, 28
DESCRIBE_CONFIGS, ALTER_CONFIGS = 32, 33
SASL_AUTHENTICATE, INCREMENTAL_ALTER_CONFIGS, ENVELOPE = 36, 44, 58
CONSUMER_GROUP_HEARTBEAT, GET_TELEMETRY_SUBSCRIPTIONS, PUSH_TELEMETRY = 68, 71, 72
DESCRIBE_TOPIC_PARTITIONS = 75
SHARE_GROUP_HEARTBEAT, SHARE_FETCH, SHARE_ACKNOWLEDGE = 76, 78, 79
STREAMS_GROUP_HEARTBEAT = 88

_BOTH = frozenset(
    {
        METADATA,
        API_VERSIONS,
        FIND_COORDINATOR,
        SASL_HANDSHAKE,
        SASL_AUTHENTICATE,
        GET_TELEMETRY_SUBSCRIPTIONS,
        PUSH_TELEMETRY,
        DESCRIBE_TOPIC_PARTITIONS,
        # A transaction that consumes and produces commits the offsets of what was
        # consumed: its topic is the consumer's, its sender the producer.
        TXN_OFFSET_COMMIT,
    }
)

ROLES: dict[str, frozenset[int]] = {
    "produce": _BOTH
    | {PRODUCE, INIT_PRODUCER_ID, ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, END_TXN},
    "consume": _BOTH
    | {
        FETCH,
        LIST_OFFSETS,
        OFFSET_COMMIT,
        OFFSET_FETCH,
        JOIN_GROUP,
        HEARTBEAT,
        LEAVE_GROUP,
        SYNC_GROUP,
        OFFSET_FOR_LEADER_EPOCH,
        CONSUMER_GROUP_HEARTBEAT,
        SHARE_GROUP_HEARTBEAT,
        SHARE_FETCH,
        SHARE_ACKNOWLEDGE,
    },
}
"""The API keys of each role."""

API_KEYS: dict[str, int] = {api.name.lower(): key for key, api in APIS.items()} | {
    # Cilium's and older names.
    "offsets": LIST_OFFSETS,
    "createtopic": 19,
    "deletetopic": 20,
    "groupcoordinator": FIND_COORDINATOR,
    "listclientmetricsresources": 74,
}
"""API keys by their names, in small letters."""
