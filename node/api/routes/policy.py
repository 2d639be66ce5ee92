"""Policies: documents in, documents out, and which revision is in force where."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from node.agent.documents import parse_labels
from node.agent.node import Node
from node.agent.repository import Changed
from node.api import models, views
from node.api.context import node_of
from node.api.problems import responses
from xds.source import DocumentError, Place, Problem

router = APIRouter(tags=["policy"])

OurNode = Annotated[Node, Depends(node_of)]
Name = Annotated[str, Query(max_length=253, description="of this name")]
Namespace = Annotated[str, Query(max_length=253, description="of this namespace")]
Kind = Annotated[str, Query(max_length=64, description="of this kind")]
Labels = Annotated[
    Sequence[models.LabelText],
    Query(max_length=models.MAX_LABELS, description="rules that have all these labels"),
]
FileName = Annotated[
    str, Query(max_length=models.MAX_FILE_NAME, description="what problems are to call the text")
]

FIRST_POLL, LAST_POLL = 0.02, 0.25
"""Seconds between two looks at what subscribers have acknowledged; they grow."""

DOCUMENTS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Policy documents, YAML or JSON; several are separated by `---`. "
        "Their schema is what `proxylib policy schema` prints.",
        "content": {"application/yaml": {"schema": {}}, "application/json": {"schema": {}}},
    }
}


async def _text(request: Request) -> str:
    """The body. Raises DocumentError for what is no text."""
    try:
        return (await request.body()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError([Problem(Place("body"), "not UTF-8 text")]) from error


BodyText = Annotated[str, Depends(_text)]


@router.get("/policy", operation_id="listPolicies")
def list_policies(
    node: OurNode, name: Name = "", namespace: Namespace = "", kind: Kind = "", label: Labels = ()
) -> models.PolicyList:
    """The policies in force; with parameters, those that all of them are true for."""
    state = node.repository.state
    wanted = parse_labels(label)
    chosen = [
        document
        for document in state.policies()
        if name in ("", document.name)
        and namespace in ("", document.namespace)
        and kind in ("", document.kind)
        and (not wanted or document.has_labels(wanted))
    ]
    return models.PolicyList(
        revision=state.revision,
        policies=[views.policy(document) for document in chosen],
        problems=[*views.file_problems(node), *views.quarantined(node)],
    )


@router.put(
    "/policy",
    operation_id="putPolicies",
    openapi_extra=DOCUMENTS,
    responses=responses(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
)
def put_policies(node: OurNode, text: BodyText, file: FileName = "body") -> models.Changed:
    """Put documents in force, in place of those of the same kind, namespace and name.

    All of them, or nothing: the problem has every error and its place.
    """
    return _changed(node.repository.import_texts([(file, text)]))


@router.put(
    "/policy/files",
    operation_id="putPolicyFiles",
    responses=responses(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
)
def put_policy_files(node: OurNode, request: models.PolicyTexts) -> models.Changed:
    """Put the documents of several texts in force together, or nothing of any of them."""
    return _changed(node.repository.import_texts([(f.name, f.text) for f in request.files]))


@router.delete(
    "/policy",
    operation_id="deletePolicies",
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
def delete_policies(
    node: OurNode,
    label: Labels = (),
    all_of_them: Annotated[
        bool, Query(alias="all", description="without a label: delete every policy")
    ] = False,
) -> models.Changed:
    """Delete the rules that have all the given labels; a document without a rule goes too."""
    if not label and not all_of_them:
        raise ValueError("give a label, or all=true for every policy")
    return _changed(node.repository.delete_labels(label))


@router.post(
    "/policy/validate",
    operation_id="validatePolicies",
    openapi_extra=DOCUMENTS,
    responses=responses(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
)
def validate_policies(node: OurNode, text: BodyText, file: FileName = "body") -> models.Validation:
    """Say what is wrong with documents, and change nothing."""
    try:
        warnings = node.repository.validate_text(file, text)
    except DocumentError as error:
        return models.Validation(valid=False, errors=views.places(error.problems), warnings=[])
    return models.Validation(valid=True, errors=[], warnings=views.places(warnings))


@router.get("/policy/selectors", operation_id="listSelectors")
def list_selectors(node: OurNode) -> list[models.SelectorUse]:
    """The selectors that policies use, and whom they select."""
    return views.selectors(node)


@router.get("/policy/revisions/{revision}", operation_id="waitForRevision")
async def wait_for_revision(
    node: OurNode,
    revision: Annotated[int, Path(ge=0, le=models.MAX_REVISION)],
    timeout: Annotated[
        float, Query(ge=0, le=600, allow_inf_nan=False, description="seconds to wait")
    ] = 0,
    nodes: Annotated[int, Query(ge=0, le=10_000, description="at least so many nodes")] = 0,
) -> models.Waited:
    """Whether every connected Envoy and library instance has acknowledged a revision.

    Answers when that is so, and otherwise when the time is up.
    """
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + timeout, FIRST_POLL
    while True:
        progress = await run_in_threadpool(node.repository.progress, revision)
        reached = progress.reached and len(progress.nodes) >= nodes
        if reached or loop.time() >= deadline:
            break
        await asyncio.sleep(min(pause, max(deadline - loop.time(), 0)))
        pause = min(pause * 1.5, LAST_POLL)
    return models.Waited(
        revision=revision,
        reached=reached,
        nodes=list(progress.nodes),
        waiting=dict(progress.waiting),
    )


@router.delete(
    "/policy/{name}",
    operation_id="deletePolicy",
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def delete_policy(
    node: OurNode,
    name: Annotated[str, Path(max_length=253)],
    namespace: Namespace = "",
    kind: Kind = "",
) -> models.Changed:
    """Delete the policies of this name (of any namespace and kind, unless given)."""
    return _changed(node.repository.delete(name, namespace=namespace, kind=kind))


def _changed(change: Changed) -> models.Changed:
    return models.Changed(
        revision=change.revision,
        policies=list(change.names),
        warnings=views.places(change.warnings),
    )
