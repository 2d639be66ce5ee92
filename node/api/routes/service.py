"""Services, for the toServices of policies: names for groups of endpoints, or of addresses."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from node.agent.node import Node
from node.api import models
from node.api.context import node_of
from node.api.problems import responses
from xds.services import ServiceEntry

router = APIRouter(tags=["service"])

OurNode = Annotated[Node, Depends(node_of)]
Name = Annotated[str, Path(max_length=253, description="what the service is called")]
Namespace = Annotated[str, Query(max_length=253, description="empty: the one without")]


@router.get("/service", operation_id="listServices", response_model_exclude_none=True)
def list_services(node: OurNode) -> list[ServiceEntry]:
    """Every service, by namespace and name."""
    return [entry for _, entry in sorted(node.repository.state.services.items())]


@router.put(
    "/service",
    operation_id="putService",
    responses=responses(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
)
def put_service(node: OurNode, entry: ServiceEntry) -> models.Revision:
    """Have a service, in place of the one of the same namespace and name."""
    return models.Revision(revision=node.repository.put_service(entry))


@router.get(
    "/service/{name}",
    operation_id="getService",
    response_model_exclude_none=True,
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
)
def get_service(node: OurNode, name: Name, namespace: Namespace = "") -> ServiceEntry:
    """One service."""
    return node.repository.service(name, namespace)


@router.delete(
    "/service/{name}",
    operation_id="deleteService",
    responses=responses(
        HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
    ),
)
def delete_service(node: OurNode, name: Name, namespace: Namespace = "") -> models.Revision:
    """Forget a service: toServices selects nobody by it then."""
    return models.Revision(revision=node.repository.delete_service(name, namespace))
