"""However a conversation is cut, the same comes of it: random ones, with a broker's answers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.kafka import schema
from proxylib.testing import Host, check_chunking
from proxylib.testing.strategies import cut_at, cuts
from tests.parsers.kafka.messages import NAMES, Brokerage, fetch, produce, request, sample

RULES = [{"role": "consume", "topic": "msgs"}, {"role": "produce", "topic": "msgs"}]
IDS = {b"i" * 16: b"msgs", b"s" * 16: b"secret"}
ALL_IDS = [*IDS, b"u" * 16]
TOPICS = [b"msgs", b"msgs", b"secret"]
SMALL = (
    "Heartbeat",
    "FindCoordinator",
    "CreateTopics",
    "OffsetCommit",
    "ListOffsets",
    "DeleteAcls",
)


@st.composite
def one_request(draw: st.DrawFn, correlation: int) -> bytes:
    names = st.lists(st.sampled_from(TOPICS), min_size=1, max_size=2)
    ids = st.lists(st.sampled_from(ALL_IDS), min_size=1, max_size=2)
    kind = draw(st.sampled_from(["fetch", "produce", "metadata", "versions", "other"]))
    if kind == "fetch":
        version = draw(st.sampled_from([0, 4, 11, 12, 13, 16]))
        topics = draw(ids if version >= 13 else names)
        epoch = draw(st.sampled_from([-1, -1, 0, 1]))
        session = 77 if epoch == 1 else 0
        more = {"SessionEpoch": epoch, "SessionId": session}
        return fetch(version, *topics, correlation=correlation, **more)
    if kind == "produce":
        version = draw(st.sampled_from([0, 3, 9, 13]))
        topics = draw(ids if version >= 13 else names)
        size = draw(st.sampled_from([0, 10, 5000]))
        acks = draw(st.sampled_from([-1, 1, 0]))
        records = b"r" * size
        return produce(version, *topics, correlation=correlation, acks=acks, records=records)
    if kind == "metadata":
        version = draw(st.sampled_from([0, 1, 8, 12, 13]))
        every = draw(st.booleans())
        topics = [] if every else [{"Name": name} for name in draw(names)]
        return request(
            "Metadata", version, correlation, Topics=None if every and version else topics
        )
    if kind == "versions":
        return request("ApiVersions", draw(st.integers(0, 4)), correlation)
    api = schema.APIS[NAMES[draw(st.sampled_from(SMALL))]]
    version = draw(st.integers(*api.versions))
    return request(api.name, version, correlation, **sample(schema.request(api.key, version)))


@st.composite
def conversation(draw: st.DrawFn) -> list[tuple[bool, bytes]]:
    """Bursts of requests, and after each what a broker answers to what has reached it."""
    host = Host("kafka", RULES)
    broker = Brokerage(IDS)
    bursts: list[tuple[bool, bytes]] = []
    correlation = 0
    for _ in range(draw(st.integers(1, 3))):
        burst = b""
        for _ in range(draw(st.integers(1, 4))):
            correlation += 1
            burst += draw(one_request(correlation))
        bursts.append((False, burst))
        arrived = host.client(burst)
        while arrived:
            answer = broker.answer(arrived)
            bursts.append((True, answer))
            host.server(answer)
            arrived = host.take(reply=False)
    assert not host.closed
    return bursts


@settings(max_examples=60)
@given(bursts=conversation(), data=st.data())
def test_cuts_do_not_matter(bursts: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    longest = max(len(burst) for _, burst in bursts)
    at = data.draw(cuts(longest))
    outcome = check_chunking("kafka", bursts, RULES, also=[lambda burst: cut_at(burst, at)])
    assert not outcome.closed
    assert b"secret" not in outcome.to_server


@settings(max_examples=60)
@given(bursts=conversation())
def test_every_answer_is_due_and_in_its_turn(bursts: list[tuple[bool, bytes]]) -> None:
    host = Host("kafka", RULES)
    out = b""
    for reply, burst in bursts:
        out += host.server(burst) if reply else b""
        if not reply:
            host.client(burst)
        out += host.take(reply=True)
    correlations = []
    while out:
        length = int.from_bytes(out[:4], "big")
        correlations.append(int.from_bytes(out[4:8], "big"))
        out = out[length + 4 :]
    assert correlations == sorted(set(correlations))
    asked = [
        entry.fields["correlation_id"]
        for entry in host.log
        if entry.entry_type.name in ("Request", "Denied")
    ]
    assert set(correlations) <= set(asked)
