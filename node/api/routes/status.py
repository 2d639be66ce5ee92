"""The agent itself: health, configuration, control server, redirects, metrics."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from node.agent.node import Node
from node.api import models, views
from node.api.context import node_of

router = APIRouter(tags=["status"])

OurNode = Annotated[Node, Depends(node_of)]


@router.get("/healthz", operation_id="getHealth")
def health(node: OurNode) -> models.Health:
    """How the agent and its parts are."""
    return views.health(node)


@router.get("/config", operation_id="getConfig")
def config(node: OurNode) -> dict[str, str]:
    """The settings in force."""
    return node.config.settings()


@router.get("/xds", operation_id="getXds")
def xds_status(node: OurNode) -> models.XdsStatus:
    """What every Envoy and library instance has, and what it refused and why."""
    return views.xds_status(node)


@router.get("/redirects", operation_id="listRedirects")
def redirects(node: OurNode) -> list[models.Redirect]:
    """Which connections of which endpoints a parser judges."""
    return views.redirects(node)


@router.post("/envoy/reload", operation_id="reloadEnvoys", status_code=HTTPStatus.ACCEPTED)
def reload_envoys(node: OurNode) -> models.Reloading:
    """Have a new Envoy take over from each that runs; its connections go on."""
    return models.Reloading(envoys=node.links.proxies.reload())


@router.get(
    "/metrics",
    operation_id="getMetrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Counters and gauges, as Prometheus reads them."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
