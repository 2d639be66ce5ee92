"""The monitor's stream: who may have how many, and how it ends."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

import httpx
import pytest

from node.monitor.hub import MAX_SUBSCRIBERS
from tests.native.services import wait_for
from tests.node.agents import Agent


def subscribe(agent: Agent, *, many: int) -> list[socket.socket]:
    sockets = []
    for _ in range(many):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].connect(str(agent.config.api_path))
        sockets[-1].sendall(b"GET /v1/monitor HTTP/1.1\r\nHost: a\r\n\r\n")
    return sockets


def test_it_ends_when_the_time_is_up(agent: Agent) -> None:
    answer = agent.http.get("/monitor", params={"timeout": 0.1})
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {"type": "start", "node": "node-1"},
        {"type": "end", "reason": "the time is up"},
    ]


def test_there_are_only_so_many(agent: Agent) -> None:
    assert agent.node is not None
    hub = agent.node.monitor.hub
    with ExitStack() as open_ones:
        for item in subscribe(agent, many=MAX_SUBSCRIBERS):
            open_ones.enter_context(item)
        wait_for(lambda: hub.subscribers == MAX_SUBSCRIBERS, "the subscribers")
        refused = agent.http.get("/monitor")
        assert refused.status_code == 503
        assert "watch this agent already" in refused.json()["detail"]
        command = agent.cli("monitor")
        assert command.exit_code == 3
        assert "watch this agent already" in command.output
        assert agent.get("/healthz")["state"] == "Ok"
    # Whoever goes away is forgotten, without a word of theirs.
    wait_for(lambda: hub.subscribers == 0, "them to be missed")
    assert agent.http.get("/monitor", params={"timeout": 0}).status_code == 200
    wait_for(lambda: hub.subscribers == 0, "that one too")


@pytest.mark.parametrize(
    "params",
    [{"type": "l8"}, {"related-to": 65536}, {"from": -1}, {"to": "x"}, {"timeout": "nan"}],
)
def test_bad_parameters(agent: Agent, params: httpx.QueryParams) -> None:
    answer = agent.http.get("/monitor", params=params)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
