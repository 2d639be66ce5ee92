"""Both variants of ADS against a client that knows the protocol."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxylib.proto import discovery_pb2 as discovery
from tests.xds.ads.model import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET, Client, make
from xds.ads.types import TYPES, WHOLE
from xds.stream import ADS, DELTA_ADS, Stream
from xds.subscription import MAX_OUTSTANDING, MAX_SHOWN, StreamError
from xds.world import Resource, Snapshot, World, resource

both = pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])


def connect(incremental: bool, world: World, **options: object) -> Client:
    client = Client(incremental, **options)  # type: ignore[arg-type]
    client.world = world
    client.subscribe(CLUSTER)
    client.subscribe(LISTENER)
    return client


FIRST = make({CLUSTER: {"a": b"A", "b": b"B"}, LISTENER: {"l": b"->a"}}, 1, World())


@both
def test_clusters_come_before_listeners(incremental: bool) -> None:
    client = connect(incremental, FIRST)
    assert client.hear()
    assert not client.hear(), "listeners wait until the clusters are answered"
    client.settle()
    assert [url for url, _, _ in client.history] == [CLUSTER, LISTENER]
    assert client.cache[LISTENER] == {"l": b"->a"}


@both
def test_nothing_is_sent_twice(incremental: bool) -> None:
    client = connect(incremental, FIRST)
    client.settle()
    client.history.clear()
    client.world = World(9, FIRST.snapshots)
    client.settle()
    assert client.history == []
    assert all(status.revision == 9 for status in client.stream.statuses())


@both
def test_a_listener_moves_to_another_cluster_without_a_gap(incremental: bool) -> None:
    client = connect(incremental, FIRST)
    client.settle()
    client.history.clear()
    client.world = make({CLUSTER: {"b": b"B", "c": b"C"}, LISTENER: {"l": b"->c"}}, 2, FIRST)
    client.settle()
    sent = {False: ["a", "b", "c"], True: ["c"]}[incremental]
    rest = {False: ("b", "c"), True: ()}[incremental]
    assert client.history == [
        (CLUSTER, tuple(sent), ()),
        (LISTENER, ("l",), ()),
        (CLUSTER, rest, ("a",)),
    ]
    assert all(status.revision == 2 for status in client.stream.statuses())


@both
def test_a_refused_listener_keeps_its_cluster(incremental: bool) -> None:
    client = connect(incremental, FIRST, accepts=lambda url, name, body: body != b"->c")
    client.settle()
    client.world = make({CLUSTER: {"c": b"C"}, LISTENER: {"l": b"->c"}}, 2, FIRST)
    client.settle()
    assert client.cache[LISTENER] == {"l": b"->a"}
    assert "a" in client.cache[CLUSTER]
    (status,) = (s for s in client.stream.statuses() if s.type_url == LISTENER)
    assert (status.acked_version, status.nacked_version, status.refused) == (1, 2, ("l",))
    assert "no good" in status.reason
    assert status.revision == 1
    client.history.clear()
    client.settle()
    assert client.history == [], "what was refused is not sent again"
    contents = {CLUSTER: {"c": b"C"}, LISTENER: {"l": b"->c#better"}}
    client.world = make(contents, 3, client.world)
    client.settle()
    assert client.cache[CLUSTER] == {"c": b"C"}
    assert client.cache[LISTENER] == {"l": b"->c#better"}


@both
def test_a_refused_cluster_does_not_hold_other_listeners_up(incremental: bool) -> None:
    client = connect(incremental, FIRST, accepts=lambda url, name, body: body != b"bad")
    client.settle()
    contents = {
        CLUSTER: {"a": b"A", "b": b"B", "c": b"bad"},
        LISTENER: {"l": b"->a", "m": b"->b"},
    }
    client.world = make(contents, 2, FIRST)
    client.settle()
    assert client.cache[LISTENER] == {"l": b"->a", "m": b"->b"}


def test_what_was_refused_together_is_due_together() -> None:
    client = Client(True, accepts=lambda url, name, body: body != b"bad")
    client.world = make({SECRET: {"one": b"1", "two": b"bad"}}, 1, World())
    client.subscribe(SECRET, {"one", "two"})
    client.settle()
    contents = {SECRET: {"one": b"1", "two": b"bad", "three": b"3"}}
    client.history.clear()
    client.world = make(contents, 2, client.world)
    client.subscribe(SECRET, {"one", "two", "three"})
    client.settle()
    assert client.history == [(SECRET, ("three",), ())]
    client.history.clear()
    contents[SECRET]["two"] = b"2"
    client.world = make(contents, 3, client.world)
    client.settle()
    assert client.history == [(SECRET, ("one", "two"), ())]
    assert all(s.revision == 3 and not s.reason for s in client.stream.statuses())


def test_reconnect_with_versions_sends_what_changed() -> None:
    cache = {CLUSTER: {"a": b"A", "b": b"B"}, LISTENER: {"l": b"->a"}}
    client = connect(True, FIRST, cache=cache)
    client.settle()
    assert client.history == []
    world = make({CLUSTER: {"a": b"A2", "c": b"C"}, LISTENER: {"l": b"->c"}}, 2, FIRST)
    client = Client(True, cache)
    client.world = world
    client.subscribe(CLUSTER)
    client.settle()
    assert client.history == [(CLUSTER, ("a", "c"), ())], "before it names its listeners"
    client.subscribe(LISTENER)
    client.settle()
    assert client.history[1:] == [(LISTENER, ("l",), ()), (CLUSTER, (), ("b",))]


def test_reconnect_with_a_version_sends_nothing_if_it_is_the_same() -> None:
    client = Client(False, {CLUSTER: {"a": b"A", "b": b"B"}})
    client.world = FIRST
    client.versions[CLUSTER] = FIRST.of(CLUSTER).content_version
    client.subscribe(CLUSTER)
    client.settle()
    assert client.history == []
    assert client.stream.statuses()[0].acked_version == 1


@both
def test_names_come_and_go(incremental: bool) -> None:
    client = Client(incremental)
    client.world = make({ENDPOINTS: {"a": b"1", "b": b"2", "c": b"3"}}, 1, World())
    client.subscribe(ENDPOINTS, {"a"})
    client.settle()
    client.subscribe(ENDPOINTS, {"a", "b"})
    client.settle()
    client.subscribe(ENDPOINTS, {"b"})
    client.settle()
    client.subscribe(ENDPOINTS, {"a", "b"})
    client.settle()
    assert [names for _, names, _ in client.history] == [("a",), ("b",), ("a",)]
    client.subscribe(ENDPOINTS, set())
    client.history.clear()
    client.world = make({ENDPOINTS: {"a": b"4"}}, 2, client.world)
    client.settle()
    assert client.history == [], "no names, after names, is nothing and not everything"


@both
def test_an_updated_cluster_gets_its_endpoints_again(incremental: bool) -> None:
    def world(number: int, body: bytes) -> World:
        one = Resource("a", body, body.hex(), ((ENDPOINTS, "a"),))
        endpoints = {"a": resource("a", b"E")}
        return World(
            number,
            {
                CLUSTER: Snapshot(CLUSTER, number, {"a": one}),
                ENDPOINTS: Snapshot(ENDPOINTS, 1, endpoints),
            },
        )

    client = Client(incremental)
    client.world = world(1, b"A")
    client.subscribe(CLUSTER)
    client.subscribe(ENDPOINTS, {"a"})
    client.settle()
    client.history.clear()
    client.world = world(2, b"A2")
    client.settle()
    assert [url for url, _, _ in client.history] == [CLUSTER, ENDPOINTS]


def delta(stream: Stream, url: str, **fields: object) -> None:
    stream.receive(discovery.DeltaDiscoveryRequest(type_url=url, **fields).SerializeToString())  # type: ignore[arg-type]


def heard(stream: Stream, world: World) -> discovery.DeltaDiscoveryResponse:
    data = stream.respond(world)
    assert data is not None
    return discovery.DeltaDiscoveryResponse.FromString(data)


def test_delta_says_what_does_not_exist() -> None:
    stream = Stream(DELTA_ADS)
    delta(stream, SECRET, resource_names_subscribe=["a", "b"])
    world = make({SECRET: {"a": b"1"}}, 1, World())
    response = heard(stream, world)
    assert [item.name for item in response.resources] == ["a"]
    assert list(response.removed_resources) == ["b"]
    assert stream.respond(world) is None
    later = make({SECRET: {"a": b"1", "b": b"2"}}, 2, world)
    assert [item.name for item in heard(stream, later).resources] == ["b"]


def test_delta_provides_again_what_is_asked_for_again() -> None:
    stream = Stream(DELTA_ADS)
    world = make({SECRET: {"a": b"1"}}, 1, World())
    for _ in range(3):
        delta(stream, SECRET, resource_names_subscribe=["a"])
        assert [item.name for item in heard(stream, world).resources] == ["a"]
    delta(stream, SECRET, resource_names_unsubscribe=["a", "never", "*"])
    assert stream.respond(make({SECRET: {"a": b"2"}}, 2, world)) is None


def test_delta_wildcard_and_a_name() -> None:
    stream = Stream(DELTA_ADS)
    delta(stream, CLUSTER)
    assert [item.name for item in heard(stream, FIRST).resources] == ["a", "b"]
    delta(stream, CLUSTER, resource_names_subscribe=["a", "x"])
    response = heard(stream, FIRST)
    assert [item.name for item in response.resources] == ["a"]
    assert list(response.removed_resources) == ["x"]
    delta(stream, CLUSTER, resource_names_unsubscribe=["a", "x"])
    response = heard(stream, FIRST)
    assert [item.name for item in response.resources] == ["a"], "the wildcard has it"
    assert list(response.removed_resources) == ["x"], "and this one not"
    delta(stream, CLUSTER, resource_names_unsubscribe=["*"])
    assert stream.respond(make({CLUSTER: {"z": b"Z"}}, 2, FIRST)) is None


def test_delta_takes_a_subscription_whatever_its_nonce() -> None:
    stream = Stream(DELTA_ADS)
    world = make({SECRET: {"a": b"1", "b": b"2"}}, 1, World())
    delta(stream, SECRET, resource_names_subscribe=["a"])
    heard(stream, world)
    delta(stream, SECRET, resource_names_subscribe=["b"], response_nonce="nonsense")
    assert [item.name for item in heard(stream, world).resources] == ["b"]
    assert stream.statuses()[0].pending_since is not None


def test_a_peer_that_never_answers_is_not_sent_more_and_more() -> None:
    stream = Stream(DELTA_ADS)
    delta(stream, SECRET, resource_names_subscribe=["a"])
    world, sent = World(), 0
    for n in range(3 * MAX_OUTSTANDING):
        world = make({SECRET: {"a": b"%d" % n}}, n, world)
        sent += stream.respond(world) is not None
    assert sent == MAX_OUTSTANDING
    delta(stream, SECRET, response_nonce="1")
    newest = heard(stream, world).resources[0]
    assert newest.resource.value == b"%d" % (3 * MAX_OUTSTANDING - 1), "those between are skipped"


@both
def test_an_empty_world_is_said(incremental: bool) -> None:
    client = connect(incremental, make({}, 1, World()))
    client.settle()
    assert client.history == [(CLUSTER, (), ()), (LISTENER, (), ())]


def test_a_name_like_another_s_is_not_refused_with_it() -> None:
    accepts = lambda url, name, body: name != "r2d2-egress"  # noqa: E731
    client = Client(True, accepts=accepts)
    client.world = make({LISTENER: {"r2d2": b"1", "r2d2-egress": b"2"}}, 1, World())
    client.subscribe(LISTENER)
    client.settle()
    assert client.stream.statuses()[0].refused == ("r2d2-egress",)


GARBAGE_NAMES = st.sampled_from(["a", "b", "*", "", "\x00", "x" * 2000])
GARBAGE_URLS = st.sampled_from([*TYPES, "", "nonsense"])


@st.composite
def garbage(draw: st.DrawFn, incremental: bool) -> bytes:
    """Requests that nobody would make, and bytes that are none."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=50))
    names = st.lists(GARBAGE_NAMES, max_size=3)
    nonce = draw(st.sampled_from(["", "0", "1", "2", "3", "-1", "made up"]))
    url = draw(GARBAGE_URLS)
    request: discovery.DeltaDiscoveryRequest | discovery.DiscoveryRequest
    if incremental:
        request = discovery.DeltaDiscoveryRequest(
            type_url=url,
            response_nonce=nonce,
            resource_names_subscribe=draw(names),
            resource_names_unsubscribe=draw(names),
            initial_resource_versions=draw(st.dictionaries(GARBAGE_NAMES, GARBAGE_NAMES)),
        )
    else:
        request = discovery.DiscoveryRequest(
            type_url=url,
            response_nonce=nonce,
            resource_names=draw(names),
            version_info=draw(st.sampled_from(["", "1", FIRST.of(CLUSTER).content_version])),
        )
    if draw(st.booleans()):
        request.error_detail.message = draw(st.sampled_from(["", "no", "\x00", "a: b: c"]))
    return request.SerializeToString()


@both
@given(data=st.data())
def test_garbage_ends_in_words_and_never_in_a_crash(incremental: bool, data: st.DataObject) -> None:
    stream = Stream(DELTA_ADS if incremental else ADS)
    second = make({CLUSTER: {"b": b"B2"}, SECRET: {"a": b"1"}}, 2, FIRST)
    third = make({CLUSTER: {"a": b"A", "b": b"B"}}, 3, second)
    for world in (World(), FIRST, second, third):
        for item in data.draw(st.lists(garbage(incremental), max_size=4)):
            with contextlib.suppress(StreamError):
                stream.receive(item)
            for _ in range(20):
                if stream.respond(world) is None:
                    break
            else:
                raise AssertionError("it never ends")
            for status in stream.statuses():
                assert len(status.refused) <= MAX_SHOWN
                assert 0 <= status.acked_version <= status.sent_version <= 3


# -- any order of events -------------------------------------------------------------------

NAMES = st.sampled_from("abc")


class Conversation(RuleBasedStateMachine):
    """Publishing, subscribing, answering and reconnecting in any order.

    Whenever everything has been said, the client has exactly what was published and
    not refused; and no listener or route ever names a cluster that is not there.
    """

    incremental = True

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        self.contents: dict[str, dict[str, bytes]] = {url: {} for url in TYPES}
        self.client = self.connected(None)
        self.published = World()

    def connected(self, cache: dict[str, dict[str, bytes]] | None) -> Client:
        client = Client(self.incremental, cache, lambda url, name, body: b"bad" not in body)
        if cache is not None:
            client.world = self.published
        for url in TYPES:
            names = set(client.cache[LISTENER]) if url == ROUTES else set("ab")
            client.subscribe(url, None if url in WHOLE else names)
        return client

    @rule(
        clusters=st.dictionaries(NAMES, st.integers(0, 2)),
        listeners=st.dictionaries(NAMES, st.integers(0, 3)),
        secrets=st.dictionaries(NAMES, st.integers(0, 2)),
    )
    def publish(
        self, clusters: dict[str, int], listeners: dict[str, int], secrets: dict[str, int]
    ) -> None:
        """Each listener and route of a name goes to the cluster of that name, if there is one."""
        targets = {n: v for n, v in listeners.items() if n in clusters}
        bodies = {n: b"->%b#%d" % (n.encode(), v) for n, v in targets.items() if v < 3}
        bodies |= {n: b"bad %b" % n.encode() for n, v in targets.items() if v == 3}
        self.contents = {
            CLUSTER: {n: b"cluster %b %d" % (n.encode(), v) for n, v in clusters.items()},
            LISTENER: bodies,
            ROUTES: bodies,
            SECRET: {
                n: (b"bad" if v == 2 else b"secret %d" % v) + n.encode() for n, v in secrets.items()
            },
            ENDPOINTS: {n: b"endpoints " + n.encode() for n in clusters},
        }
        self.revision += 1
        self.published = make(self.contents, self.revision, self.published)
        self.client.world = self.published

    @rule()
    def hear(self) -> None:
        self.client.hear()

    @rule()
    def answer(self) -> None:
        self.client.answer()

    @rule(url=st.sampled_from([ENDPOINTS, SECRET]), names=st.sets(NAMES))
    def choose(self, url: str, names: set[str]) -> None:
        self.client.subscribe(url, names)

    @precondition(lambda self: self.incremental)
    @rule()
    def reconnect(self) -> None:
        self.client = self.connected(self.client.cache)

    @rule()
    def settle(self) -> None:
        client = self.client
        client.settle()
        if not self.revision:
            return
        refusals = any(b"bad" in b for items in self.contents.values() for b in items.values())
        for url in TYPES:
            bad = {n for n, b in self.contents[url].items() if b"bad" in b}
            wanted = {
                name: body
                for name, body in self.contents[url].items()
                if (url in WHOLE or name in client.named[url]) and name not in bad
            }
            kept = {n: b for n, b in client.cache[url].items() if n not in bad}
            if url == LISTENER or (not refusals and (self.incremental or url in WHOLE)):
                assert kept == wanted, url
            else:
                # What a refused listener may need stays; and state of the world has no
                # word for an endpoint that is gone.
                assert wanted.items() <= kept.items(), url
        statuses = client.stream.statuses()
        assert all(status.pending_since is None for status in statuses)
        if not refusals:
            assert {status.revision for status in statuses} == {self.revision}
            assert all(status.reason == "" for status in statuses)

    @invariant()
    def bounded(self) -> None:
        assert len(self.client.answers) <= len(TYPES) * MAX_OUTSTANDING


class Incremental(Conversation):
    incremental = True


class WholeWorld(Conversation):
    incremental = False


TestIncremental = Incremental.TestCase
TestIncremental.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWholeWorld = WholeWorld.TestCase
TestWholeWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
