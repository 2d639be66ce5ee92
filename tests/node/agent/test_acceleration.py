"""Endpoints whose bytes go past the TCP stack, because they ask for it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import pytest

from bpf.errors import BpfError
from bpf.sockmap import Sockmap
from demos.namespaces import Endpoint
from node.agent.acceleration import Acceleration
from node.agent.cleanup import clean
from node.agent.endpoints import NodeEndpoint
from tests.conftest import MakeLab
from tests.node.agent.nodes import add, agent_in, eventually, ingress, put
from tests.node.agents import Agent, running

SERVER = """
import asyncio
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
async def main():
    async with await asyncio.start_server(serve, None, 7000) as server:
        print("ready", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""
"""Event-driven: programs that block take no part."""

CLIENT = """
import asyncio, sys
async def main():
    reader, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], 7000), 1)
    for _ in range(500):
        writer.write(b"x" * 1000)
        await reader.readexactly(1000)
    writer.close()
asyncio.run(main())
"""


def accelerated(agent: Agent, client: Endpoint, address: str) -> bool:
    """Whether most of 1,000 messages go past the stack.

    Other labs of this machine may have some of the same addresses, and so be counted too.
    """
    assert agent.node is not None
    sockmap = agent.node.links.acceleration.sockmap
    assert sockmap is not None
    before = sockmap.counts().messages
    client.run(sys.executable, "-c", CLIENT, address, check=True)
    return sockmap.counts().messages - before > 500


def wants(agent: Agent, number: int, sockmap: bool) -> int:
    return agent.http.patch(f"/endpoint/{number}", json={"sockmap": sockmap}).status_code


@pytest.mark.timeout(200)
def test_who_asks_for_it_takes_part(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server")
    client, server = lab["client"], lab["server"]
    server.popen(sys.executable, "-c", SERVER)
    eventually(lambda: "7000" in server.run("ss", "-Hltn").stdout)
    with ExitStack() as first:
        agent = first.enter_context(agent_in(lab))
        add(agent, client, "app=client", sockmap=True)
        add(agent, server, "app=server")
        assert not accelerated(agent, client, server.ipv4)
        assert wants(agent, 2, True) == 200
        assert agent.get("/endpoint/2")["attachment"]["sockmap"] is True
        assert f"{client.interface} (sockmap)" in agent.cli("endpoint", "list").stdout
        assert agent.cli("endpoint", "config", 2).stdout.endswith("sidecar=false\nsockmap=true\n")
        assert '"sockmap": true' in agent.cli("endpoint", "config", 2, "--json").stdout
        assert accelerated(agent, client, server.ipv4)
        # A policy is in force for it too.
        put(agent, ingress(name="none", app="server", peer="nobody"))
        assert client.run(sys.executable, "-c", CLIENT, server.ipv4).returncode != 0
        agent.http.delete("/policy/none")
    # Who takes part, does so after a restart too; then one of them ends it.
    with agent_in(lab) as agent:
        assert agent.node is not None
        assert accelerated(agent, client, server.ipv4)
        assert wants(agent, 2, False) == 200
        assert sorted(agent.node.links.acceleration.joined) == [1]
        assert not accelerated(agent, client, server.ipv4)
        agent.http.delete("/endpoint/1")
        assert agent.node.links.acceleration.sockmap is not None
        assert agent.node.links.acceleration.sockmap.members() == frozenset()
    with lab.node.entered():
        done = clean(agent.config)
    assert any("sockmap" in line for line in done)
    assert not agent.config.bpf_root.exists()


def test_an_agent_that_has_none(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    with agent_in(lab, sockmap="none") as agent:
        body = {"netns": lab["client"].netns, "sockmap": True}
        refused = agent.http.post("/endpoint", json=body)
        assert refused.status_code == 503
        assert "sockmap: none" in refused.json()["detail"]
        assert json.loads(agent.cli("endpoint", "list", "--json").stdout) == []


def test_without_an_interface_there_is_none(short_path: object) -> None:
    with running(short_path, datapath="none") as agent:  # type: ignore[arg-type]
        agent.add_endpoint("10.0.0.1")
        assert wants(agent, 1, True) == 422
        assert agent.add_endpoint("10.0.0.2", sockmap=True).status_code == 422


def test_what_cannot_be_opened_is_tried_again_later() -> None:
    """The self-test takes seconds; nobody waits for it twice a second."""
    tries: list[int] = []

    def fail() -> Sockmap:
        tries.append(1)
        raise BpfError("cgroup v2 is not mounted")

    asking = {1: NodeEndpoint(1, ("10.0.0.1",), (), sockmap=True)}
    acceleration = Acceleration(fail, lambda: False)
    for _ in range(3):
        acceleration.settle(asking)
    assert (len(tries), acceleration.problem) == (1, "cgroup v2 is not mounted")
    # Who asks for it is told so, each time.
    with pytest.raises(BpfError, match="not mounted"):
        acceleration.check()
    assert len(tries) == 2


def test_where_it_is_disabled_nothing_is_opened() -> None:
    def never() -> Sockmap:
        raise AssertionError

    asking = {1: NodeEndpoint(1, ("10.0.0.1",), (), sockmap=True)}
    acceleration = Acceleration(never, lambda: False, "this agent has sockmap: none")
    acceleration.settle(asking)
    assert acceleration.problem == "this agent has sockmap: none"
    acceleration.settle({})
    assert acceleration.problem == ""
