"""Errors as problem details (RFC 9457), with the places of everything that is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from node.agent.endpoints import AddressTaken, EndpointError, UnknownEndpoint
from node.agent.repository import Full, NotOurs, UnknownName, UnknownPolicy, UnknownService
from node.api.models import ProblemPlace
from node.api.views import UnknownIdentity
from proxylib.errors import ConfigError
from xds.source import DocumentError
from xds.trace import TraceError

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger(__name__)


class ProblemDetails(BaseModel):
    """What went wrong. `errors` has every place, as far as there are places."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[ProblemPlace] = []


STATUS: dict[type[Exception], HTTPStatus] = {
    UnknownPolicy: HTTPStatus.NOT_FOUND,
    UnknownEndpoint: HTTPStatus.NOT_FOUND,
    UnknownIdentity: HTTPStatus.NOT_FOUND,
    UnknownName: HTTPStatus.NOT_FOUND,
    UnknownService: HTTPStatus.NOT_FOUND,
    NotOurs: HTTPStatus.CONFLICT,
    AddressTaken: HTTPStatus.CONFLICT,
    EndpointError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DocumentError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TraceError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ValueError: HTTPStatus.UNPROCESSABLE_ENTITY,
    Full: HTTPStatus.INSUFFICIENT_STORAGE,
    ConfigError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What an error of the agent's means over HTTP; the nearest base class counts."""


def problem(status: HTTPStatus, detail: str, errors: Sequence[ProblemPlace] = ()) -> JSONResponse:
    body = ProblemDetails(
        title=status.phrase, status=status.value, detail=detail, errors=list(errors)
    )
    return JSONResponse(body.model_dump(), status.value, media_type=MEDIA_TYPE)


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of the errors of a path."""
    return {
        status.value: {
            "description": status.phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have `app` answer every error as a problem."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        places = [ProblemPlace.of(p) for p in getattr(error, "problems", ())]
        return problem(status, str(error), places)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        response = problem(status, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        places = [
            ProblemPlace(
                path=".".join(str(step) for step in detail["loc"]), message=str(detail["msg"])
            )
            for detail in error.errors()
        ]
        text = "; ".join(f"{place.path}: {place.message}" for place in places)
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, text, places)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the agent's own; its log has more"
        )

    for kind in STATUS:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
