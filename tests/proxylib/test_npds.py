"""The xDS client against control servers that misbehave."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from proxylib import npds
from proxylib.proto import discovery_pb2 as xds

TIMEOUT = 10.0
TYPE = npds.POLICY_TYPE

Stream = Callable[[Iterator[xds.DiscoveryRequest], grpc.ServicerContext], Iterator[Any]]


class _Service(grpc.GenericRpcHandler):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=xds.DiscoveryRequest.FromString,
            response_serializer=lambda m: m if type(m) is bytes else m.SerializeToString(),
        )


@contextmanager
def served(path: Path, stream: Stream, apply: npds.Apply) -> Iterator[npds.Client]:
    """A client whose only subscription is answered by `stream`."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[_Service(stream)])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    client = npds.Client(str(path), "node", [npds.Subscription(TYPE, npds.POLICY_METHOD, apply)])
    try:
        yield client
    finally:
        client.close()
        server.stop(0).wait()


def response(number: int, **fields: Any) -> xds.DiscoveryResponse:
    values = {"version_info": str(number), "nonce": f"n{number}", "type_url": TYPE} | fields
    return xds.DiscoveryResponse(**values)


def accept(version: str, resources: Sequence[bytes]) -> None:
    pass


def test_every_stream_that_brought_something_starts_the_back_off_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npds, "FIRST_BACKOFF", 0.05)
    streams = threading.Semaphore(0)

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        streams.release()
        yield response(1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    with served(tmp_path / "xds", stream, accept):
        started = time.monotonic()
        for _ in range(12):
            assert streams.acquire(timeout=TIMEOUT)
        assert time.monotonic() - started < 5, "doubling from 50 ms, 12 streams take 100 s"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * 5_000_000, "x" * npds.MAX_REASON), ("odd \udcff", r"odd \udcff"), ("", "ValueError")],
    ids=["long", "odd", "empty"],
)
def test_any_reason_reaches_the_server(tmp_path: Path, text: str, reason: str) -> None:
    answers: list[xds.DiscoveryRequest] = []
    done = threading.Event()

    def refuse(version: str, resources: Sequence[bytes]) -> None:
        if version == "2":
            raise ValueError(text)

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for number, request in zip((1, 2, 3), requests, strict=False):
            answers.append(request)
            yield response(number)
        answers.append(next(requests))
        done.set()

    with served(tmp_path / "xds", stream, refuse):
        assert done.wait(TIMEOUT)
    assert [(a.version_info, a.response_nonce, a.error_detail.message) for a in answers[:4]] == [
        ("", "", ""),
        ("1", "n1", ""),
        ("1", "n2", reason),
        ("3", "n3", ""),
    ]


def test_a_response_of_another_type_is_refused(tmp_path: Path) -> None:
    answers: list[xds.DiscoveryRequest] = []
    applied: list[str] = []
    done = threading.Event()

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)
        yield response(1, type_url=npds.HOSTS_TYPE)
        answers.append(next(requests))
        stranger = response(2)
        stranger.resources.add(type_url=npds.HOSTS_TYPE)
        yield stranger
        answers.append(next(requests))
        done.set()

    with served(tmp_path / "xds", stream, lambda version, _: applied.append(version)):
        assert done.wait(TIMEOUT)
    assert not applied
    assert all("not a response of" in answer.error_detail.message for answer in answers)


def test_garbage_does_not_end_the_client(tmp_path: Path) -> None:
    applied = threading.Event()
    numbers = itertools.count()

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield b"\xff" * 100 if next(numbers) == 0 else response(1)
        context.add_callback(lambda: None)

    with served(tmp_path / "xds", stream, lambda *_: applied.set()):
        assert applied.wait(TIMEOUT)


def test_a_server_that_sends_without_end_and_reads_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npds, "FIRST_BACKOFF", 0.05)
    streams = threading.Semaphore(0)

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        streams.release()
        number = 0
        while context.is_active():
            number += 1
            yield response(number, nonce="n" * 1000)

    with served(tmp_path / "xds", stream, accept):
        assert streams.acquire(timeout=TIMEOUT)
        assert streams.acquire(timeout=TIMEOUT), "the first stream went on for ever"
