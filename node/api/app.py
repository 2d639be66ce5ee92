"""The API as one application: its paths, its errors, its bounds."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.agent.node import Node
from node.api import problems
from node.api.metrics import NodeCollector
from node.api.problems import ProblemDetails
from node.api.routes import endpoint, fqdn, monitor, policy, resolve, service, status
from xds.source import MAX_FILE

PREFIX = "/v1"

MAX_BODY = MAX_FILE
"""Largest body of a request, bytes: the largest document."""

MAX_BODIES = 4 * MAX_BODY
"""Bytes of all bodies that are held at a time; further ones are answered 503."""


def make_app(node: Node, registry: CollectorRegistry) -> FastAPI:
    """The application that speaks for `node`; metrics go to `registry`."""
    app = FastAPI(
        title="proxylib agent",
        version="1",
        description="Policies, endpoints and state of one node. Errors are RFC 9457 problems.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.node = node
    app.state.registry = registry
    for module in (policy, resolve, endpoint, fqdn, service, monitor, status):
        app.include_router(module.router, prefix=PREFIX)
    problems.install(app)
    _describe_problems(app)
    requests = Counter(
        "proxylib_api_requests",
        "Requests to the REST API, by method and status",
        ("method", "status"),
        registry=registry,
    )
    registry.register(NodeCollector(node))
    app.add_middleware(_Bounded)
    app.add_middleware(_Counted, counter=requests)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Have the OpenAPI document say what errors look like, in place of FastAPI's own shape."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        template = "#/components/schemas/{model}"
        schemas["ProblemDetails"] = ProblemDetails.model_json_schema(ref_template=template)
        schemas["ProblemDetails"].pop("$defs", None)
        errors = problems.responses(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
        for path in document["paths"].values():
            for operation in path.values():
                if "422" in operation["responses"]:
                    operation["responses"]["422"] = errors[422]
                if "requestBody" in operation:
                    operation["responses"] |= {str(n): body for n, body in errors.items()}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class _Bounded:
    """Refuses bodies that are too large, and more of them than there is room for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                chunk = message.get("body", b"")
                body += chunk
                self._held += len(chunk)
                refusal = self._refusal(len(body))
                if refusal is not None:
                    refusal.headers["Connection"] = "close"
                    await refusal(scope, receive, send)
                    return
                if not message.get("more_body", False):
                    break
            await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    def _refusal(self, size: int) -> JSONResponse | None:
        """The answer to a body of which `size` bytes are there, if it is not taken."""
        if size > MAX_BODY:
            text = f"the body is larger than {MAX_BODY} bytes; import fewer documents at a time"
            return problems.problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        if self._held > MAX_BODIES:
            text = "too much is being sent at once; try again"
            return problems.problem(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class _Counted:
    """Counts requests by method and status."""

    _METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"))

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self._app = app
        self._counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in self._METHODS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counter.labels(method, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
