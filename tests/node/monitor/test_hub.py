"""What subscribers get, and what they lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from node.monitor import hub as hub_module
from node.monitor.hub import (
    MAX_QUEUED,
    MAX_SUBSCRIBERS,
    Filter,
    Hub,
    Subscription,
    TooManySubscribers,
)


def quiet() -> None:
    pass


def entry(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"type": "l7", **more}


def taken(subscription: Subscription) -> list[dict[str, Any]]:
    lines, _ = subscription.take()
    return [json.loads(line) for line in lines]


def test_everybody_gets_everything_in_order() -> None:
    hub = Hub()
    first, second = hub.subscribe(Filter(), quiet), hub.subscribe(Filter(), quiet)
    for number in range(3):
        hub.publish("l7", 0, 0, entry(n=number))
    assert [e["n"] for e in taken(first)] == [0, 1, 2]
    assert [e["n"] for e in taken(second)] == [0, 1, 2]
    assert taken(first) == []


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(types=frozenset({"drop"})), [3]),
        (Filter(related=frozenset({7})), [1, 2]),
        (Filter(source=frozenset({7})), [1]),
        (Filter(destination=frozenset({7})), [2]),
        (Filter(source=frozenset({0})), [0, 2, 3]),
        (Filter(related=frozenset({7, 8}), destination=frozenset({8})), [1]),
        (Filter(types=frozenset({"l7", "drop"}), destination=frozenset({0})), [0, 3]),
    ],
)
def test_filters(wanted: Filter, numbers: list[int]) -> None:
    hub = Hub()
    subscription = hub.subscribe(wanted, quiet)
    ends = [("l7", 0, 0), ("l7", 7, 8), ("trace", 0, 7), ("drop", 0, 0)]
    for number, (kind, source, destination) in enumerate(ends):
        hub.publish(kind, source, destination, entry(n=number))
    assert [e["n"] for e in taken(subscription)] == numbers


def test_what_nobody_takes_is_not_built() -> None:
    built = []

    def build() -> dict[str, Any]:
        built.append(1)
        return {"type": "l7"}

    hub = Hub()
    hub.publish("l7", 0, 0, build)
    hub.subscribe(Filter(types=frozenset({"drop"})), quiet)
    hub.publish("l7", 0, 0, build)
    first, second = hub.subscribe(Filter(), quiet), hub.subscribe(Filter(), quiet)
    hub.publish("l7", 0, 0, build)
    assert not built
    assert taken(first) == taken(second)
    assert len(built) == 1


def test_a_slow_reader_loses_and_is_told_how_many() -> None:
    hub = Hub()
    slow, quick = hub.subscribe(Filter(), quiet), hub.subscribe(Filter(), quiet)
    seen = 0
    for number in range(MAX_QUEUED + 10):
        hub.publish("l7", 0, 0, entry(n=number))
        seen += len(taken(quick))
    assert seen == MAX_QUEUED + 10
    entries = taken(slow)
    assert [e["n"] for e in entries[:-1]] == list(range(MAX_QUEUED))
    assert entries[-1] == {"type": "lost", "from": "monitor", "count": 10}
    hub.publish("l7", 0, 0, entry(n="later"))
    assert [e.get("n") for e in taken(slow)] == ["later"]


def test_large_entries_are_bounded_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_QUEUED_BYTES", 10_000)
    hub = Hub()
    subscription = hub.subscribe(Filter(), quiet)
    for _ in range(100):
        hub.publish("l7", 0, 0, entry(), 1000)
    *entries, lost = taken(subscription)
    assert len(entries) == 10
    assert lost["count"] == 90


def test_a_reader_is_woken_once_for_many() -> None:
    woken = []
    hub = Hub()
    subscription = hub.subscribe(Filter(), lambda: woken.append(1))
    for _ in range(5):
        hub.publish("l7", 0, 0, entry())
    assert len(woken) == 1
    taken(subscription)
    hub.publish("l7", 0, 0, entry())
    assert len(woken) == 2


def test_subscribers_are_bounded() -> None:
    hub = Hub()
    subscriptions = [hub.subscribe(Filter(), quiet) for _ in range(MAX_SUBSCRIBERS)]
    with pytest.raises(TooManySubscribers, match="watch this agent already"):
        hub.subscribe(Filter(), quiet)
    hub.unsubscribe(subscriptions[3])
    hub.subscribe(Filter(), quiet)
    assert hub.subscribers == MAX_SUBSCRIBERS


def test_what_is_wanted_is_told_when_it_changes() -> None:
    told: list[set[str]] = []
    hub = Hub(lambda types: told.append(set(types)))
    drops = hub.subscribe(Filter(types=frozenset({"drop"})), quiet)
    again = hub.subscribe(Filter(types=frozenset({"drop"})), quiet)
    everything = hub.subscribe(Filter(), quiet)
    hub.unsubscribe(everything)
    hub.unsubscribe(again)
    hub.unsubscribe(drops)
    assert told == [{"drop"}, {"l7", "drop", "trace", "policy-verdict"}, {"drop"}, set()]


def test_the_end_comes_after_what_was_there() -> None:
    hub = Hub()
    subscription = hub.subscribe(Filter(), quiet)
    hub.publish("l7", 0, 0, entry(n=1))
    hub.close()
    lines, ended = subscription.take()
    assert len(lines) == 1
    assert ended
    late = hub.subscribe(Filter(), quiet)
    assert late.take() == ([], True)
