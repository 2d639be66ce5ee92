"""Endpoints, identities and addresses: who there is on this node."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from node.agent.endpoints import EXTERNAL, UnknownEndpoint
from node.agent.node import Node
from node.api import models, views
from node.api.context import node_of
from node.api.problems import responses
from xds.endpoints import NamedPort
from xds.identity import LOCAL

router = APIRouter(tags=["endpoint"])

OurNode = Annotated[Node, Depends(node_of)]
Number = Annotated[int, Path(ge=0, le=65535, description="the endpoint's number")]

_NOT_THERE = responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)


@router.get("/endpoint", operation_id="listEndpoints", response_model_exclude_defaults=True)
def list_endpoints(
    node: OurNode,
    label: Annotated[
        Sequence[models.LabelText],
        Query(max_length=models.MAX_LABELS, description="those that have all these labels"),
    ] = (),
    cni_attachment_id: Annotated[
        models.AttachmentId,
        Query(alias="cni-attachment-id", description="the one that the CNI plugin calls so"),
    ] = "",
) -> list[models.Endpoint]:
    """The endpoints of this node, by number."""
    wanted = views.label_test(label)
    found = []
    for _, endpoint in sorted(node.repository.state.endpoints.items()):
        if cni_attachment_id not in ("", endpoint.external.get("cni-attachment-id")):
            continue
        # One that goes in this moment is left out.
        with suppress(UnknownEndpoint):
            if wanted(endpoint.label_set()):
                found.append(views.endpoint(node, endpoint))
    return found


@router.post(
    "/endpoint",
    operation_id="addEndpoint",
    response_model_exclude_defaults=True,
    status_code=HTTPStatus.CREATED,
    responses=responses(
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
)
def add_endpoint(
    node: OurNode, request: models.EndpointRequest, response: Response
) -> models.Endpoint:
    """Add an endpoint; without a number it gets the next that is free."""
    given = request.external_identifiers.model_dump(by_alias=True)
    addresses: Sequence[str] = request.addresses
    attachment = None
    if request.netns or request.pid or request.interface:
        attachment = node.links.find(
            netns=request.netns,
            pid=request.pid or 0,
            interface=request.interface,
            inner=request.inner,
            addresses=addresses,
        )
        addresses = attachment.addresses
        if request.sockmap:
            node.links.accelerate()
    endpoint = node.repository.add_endpoint(
        addresses,
        request.labels,
        {key: given[key] for key in EXTERNAL if given[key]},
        request.id,
        ports=[NamedPort(port.name, port.port, port.protocol) for port in request.ports],
        enforcement=request.enforcement,
        audit=request.audit,
        attachment=attachment,
        mode=request.mode,
        sockmap=request.sockmap,
    )
    response.headers["Location"] = f"/v1/endpoint/{endpoint.id}"
    return views.endpoint(node, endpoint)


@router.get(
    "/endpoint/{number}",
    operation_id="getEndpoint",
    response_model_exclude_defaults=True,
    responses=_NOT_THERE,
)
def get_endpoint(node: OurNode, number: Number) -> models.Endpoint:
    """One endpoint."""
    endpoint = node.repository.state.endpoints.get(number)
    if endpoint is None:
        raise UnknownEndpoint(f"there is no endpoint {number}")
    return views.endpoint(node, endpoint)


@router.delete(
    "/endpoint/{number}",
    operation_id="deleteEndpoint",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=_NOT_THERE,
)
def delete_endpoint(node: OurNode, number: Number) -> None:
    """Delete an endpoint: its address is nobody's then."""
    node.repository.delete_endpoint(number)


@router.patch(
    "/endpoint/{number}",
    operation_id="configureEndpoint",
    response_model_exclude_defaults=True,
    responses=_NOT_THERE,
)
def configure_endpoint(
    node: OurNode, number: Number, request: models.ModeChange
) -> models.Endpoint:
    """Change how an endpoint's policies are enforced."""
    known = node.repository.state.endpoints.get(number)
    # Not for one that cannot have it: this changes the machine.
    if request.sockmap and known is not None and known.attachment is not None:
        node.links.accelerate()
    endpoint = node.repository.set_mode(
        number,
        enforcement=request.enforcement,
        audit=request.audit,
        sockmap=request.sockmap,
    )
    return views.endpoint(node, endpoint)


@router.put(
    "/endpoint/{number}/labels",
    operation_id="setEndpointLabels",
    response_model_exclude_defaults=True,
    responses=_NOT_THERE,
)
def set_labels(node: OurNode, number: Number, request: models.LabelsRequest) -> models.Endpoint:
    """Give an endpoint other labels, and so another identity."""
    endpoint = node.repository.set_labels(number, request.labels)
    return views.endpoint(node, endpoint)


@router.patch(
    "/endpoint/{number}/labels",
    operation_id="changeEndpointLabels",
    response_model_exclude_defaults=True,
    responses=_NOT_THERE,
)
def change_labels(node: OurNode, number: Number, request: models.LabelsChange) -> models.Endpoint:
    """Add labels to an endpoint's, and take others away."""
    endpoint = node.repository.change_labels(number, request.add, request.remove)
    return views.endpoint(node, endpoint)


@router.get("/identity", operation_id="listIdentities")
def list_identities(node: OurNode) -> list[models.Identity]:
    """The identities that are known here, reserved ones included."""
    return views.identities(node)


@router.get("/identity/{number}", operation_id="getIdentity", responses=_NOT_THERE)
def get_identity(
    node: OurNode, number: Annotated[int, Path(ge=0, le=LOCAL.last)]
) -> models.Identity:
    """One identity."""
    for identity in views.identities(node):
        if identity.id == number:
            return identity
    raise views.UnknownIdentity(f"there is no identity {number}")


@router.get("/ip", operation_id="listIps")
def list_ips(node: OurNode) -> list[models.IpEntry]:
    """The addresses that have an identity other than the world's."""
    return views.ip_entries(node)
