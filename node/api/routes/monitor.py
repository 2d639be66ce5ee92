"""What happens on the node, as a stream of JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from node.agent.endpoints import MAX_ENDPOINT_ID
from node.agent.node import Node
from node.api.context import node_of
from node.api.problems import responses
from node.monitor.hub import Filter, Hub, Subscription, encode

router = APIRouter(tags=["status"])

OurNode = Annotated[Node, Depends(node_of)]
Types = Annotated[
    list[Literal["l7", "drop", "trace", "policy-verdict"]],
    Query(alias="type", max_length=4, description="entries of these types; none given: all"),
]
Number = Annotated[int, Field(ge=0, le=MAX_ENDPOINT_ID)]
Related = Annotated[
    list[Number],
    Query(alias="related-to", max_length=64, description="about one of these endpoints"),
]
Source = Annotated[list[Number], Query(alias="from", max_length=64, description="from one of them")]
Destination = Annotated[
    list[Number], Query(alias="to", max_length=64, description="to one of them")
]
Seconds = Annotated[
    float | None,
    Query(ge=0, le=86400, allow_inf_nan=False, description="end after so many seconds"),
]

MEDIA_TYPE = "application/x-ndjson"


@router.get(
    "/monitor",
    operation_id="monitor",
    response_class=StreamingResponse,
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        **responses(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def monitor(
    node: OurNode,
    types: Types = [],  # noqa: B006 - FastAPI copies it
    related: Related = [],  # noqa: B006
    source: Source = [],  # noqa: B006
    destination: Destination = [],  # noqa: B006
    timeout: Seconds = None,
) -> StreamingResponse:
    """Decisions, drops, traces and policy verdicts from now on, one JSON object per line.

    The first line comes at once. Whoever reads too slowly loses entries, and is told how many.
    """
    wanted = Filter(frozenset(types), frozenset(related), frozenset(source), frozenset(destination))
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def wake() -> None:
        # The loop may have ended while somebody was publishing.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ready.set)

    hub = node.monitor.hub
    # In a thread: the data path may be in the middle of a change.
    subscription = await run_in_threadpool(hub.subscribe, wanted, wake)
    deadline = None if timeout is None else loop.time() + timeout
    return _Stream(hub, subscription, _lines(node.config.node_name, subscription, ready, deadline))


class _Stream(StreamingResponse):
    """A subscription that ends with its response, however that ends."""

    def __init__(self, hub: Hub, subscription: Subscription, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, media_type=MEDIA_TYPE)
        self._hub, self._subscription = hub, subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not waited for: this may be a cancelled task.
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self._hub.unsubscribe, self._subscription)


async def _lines(
    name: str, subscription: Subscription, ready: asyncio.Event, deadline: float | None
) -> AsyncIterator[bytes]:
    yield encode({"type": "start", "node": name})
    ended, reason = False, "the agent ends"
    while not ended:
        try:
            async with asyncio.timeout_at(deadline):
                await ready.wait()
        except TimeoutError:
            ended, reason = True, "the time is up"
        ready.clear()
        lines, over = await run_in_threadpool(subscription.take)
        ended = ended or over
        if lines:
            yield b"".join(lines)
    yield encode({"type": "end", "reason": reason})
