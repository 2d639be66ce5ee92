"""What is known of DNS names, for the toFQDNs of policies: a DNS proxy or feed tells it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from node.agent.node import Node
from node.api import models
from node.api.context import node_of
from node.api.problems import responses

router = APIRouter(tags=["fqdn"])

OurNode = Annotated[Node, Depends(node_of)]
Name = Annotated[str, Path(max_length=256, description="a DNS name")]


@router.get("/fqdn", operation_id="listNames")
def list_names(node: OurNode) -> list[models.NameEntry]:
    """Every DNS name that is known, and its addresses."""
    return [
        models.NameEntry(name=name, addresses=list(addresses))
        for name, addresses in sorted(node.repository.state.names.items())
    ]


@router.put(
    "/fqdn/{name}",
    operation_id="setName",
    responses=responses(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
)
def set_name(node: OurNode, name: Name, request: models.NameRequest) -> models.Revision:
    """Say which addresses a DNS name has now."""
    return models.Revision(revision=node.repository.set_name(name, request.addresses))


@router.delete(
    "/fqdn/{name}",
    operation_id="deleteName",
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
)
def delete_name(node: OurNode, name: Name) -> models.Revision:
    """Forget a DNS name: nobody is selected by it then."""
    return models.Revision(revision=node.repository.set_name(name, ()))
