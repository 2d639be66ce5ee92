"""Policy trace over the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends
from pydantic import Field, model_validator

from node.agent.node import Node
from node.api import models
from node.api.context import node_of
from node.api.problems import responses
from xds.labels import label_set, parse_label
from xds.trace import End, Question, Trace, trace
from xds.trace_request import Request

router = APIRouter(tags=["policy"])

OurNode = Annotated[Node, Depends(node_of)]

Text = Annotated[str, Field(max_length=4096)]


class EndRequest(models.Wire):
    """One end of a connection: one of the three."""

    address: models.AddressText | None = None
    identity: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    labels: models.LabelTexts | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(value is not None for value in (self.address, self.identity, self.labels)) != 1:
            raise ValueError("give an address, an identity or labels")
        return self

    def end(self) -> End:
        """Raises ValueError for what is no label."""
        labels = None if self.labels is None else label_set(map(parse_label, self.labels))
        return End(self.address or "", self.identity, labels)


class L7Request(models.Wire):
    """What is said. parser: whose protocol it is; empty for the one that judges the port."""

    parser: Annotated[str, Field(max_length=253)] = ""
    fields: Annotated[Mapping[str, Sequence[Text]], Field(max_length=100)] = {}
    headers: Annotated[Sequence[tuple[Text, Text]], Field(max_length=100)] = ()

    def request(self) -> Request:
        return Request(self.parser, self.fields, self.headers)


class ResolveRequest(models.Wire):
    """Which connection, and which request on it."""

    source: EndRequest
    destination: EndRequest
    port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    directions: Annotated[list[Literal["ingress", "egress"]], Field(min_length=1, max_length=2)] = [
        "egress",
        "ingress",
    ]
    request: L7Request | None = None


@router.post(
    "/policy/resolve",
    operation_id="resolvePolicy",
    responses=responses(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY),
)
def resolve(node: OurNode, question: ResolveRequest) -> Trace:
    """What becomes of a connection or a request, by which rules, and why not by others."""
    return trace(
        node.control.engine,
        Question(
            source=question.source.end(),
            destination=question.destination.end(),
            port=question.port,
            protocol=question.protocol,
            ingress="ingress" in question.directions,
            egress="egress" in question.directions,
            request=question.request.request() if question.request is not None else None,
        ),
    )
