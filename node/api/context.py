"""What every path needs: the agent that it speaks for."""

from __future__ import annotations

from fastapi import Request

from node.agent.node import Node


def node_of(request: Request) -> Node:
    """The agent of the application that a request came to."""
    node = request.app.state.node
    assert isinstance(node, Node)
    return node
