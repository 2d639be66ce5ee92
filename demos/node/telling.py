"""What the stories of a node have in common: commands that are shown, and the end of each."""

from __future__ import annotations

import socket

import click

from demos.namespaces import Endpoint
from demos.node.agent import Entry, NodeAgent
from demos.stage import Stage
from node.address import Address
from node.monitor.lines import line


def command(stage: Stage, agent: NodeAgent, *words: object) -> str:
    """Run a command of proxylib, and show it with what it prints."""
    stage.say(click.style(f"$ proxylib {' '.join(map(str, words))}", bold=True))
    printed = agent.proxylib(*words)
    said(stage, printed)
    return printed


def said(stage: Stage, text: str) -> None:
    for one in text.splitlines():
        stage.say(one)


def brief(entry: Entry | None) -> str:
    """What the monitor says about a request: its verdict, and the request itself."""
    return "nothing" if entry is None else line(entry).rpartition("verdict ")[2]


def confirmed(observed: str, entry: Entry | None) -> str:
    """`observed`, if the monitor tells the same; else both."""
    told = None if entry is None else entry["verdict"]
    agrees = told == {"allowed": "Forwarded"}.get(observed, "Denied")
    return observed if agrees else f"{observed}, and the monitor says {told}"


def knock(client: Endpoint, to: Address) -> str:
    """What becomes of a connection of a client."""
    try:
        with client.entered(), socket.create_connection((to.host, to.port), 1):
            return "connected"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return f"error: {error.strerror}"


def check_cleanup(stage: Stage, agent: NodeAgent) -> None:
    """A row about what is left when the agent is gone and has cleaned up."""
    agent.stop()
    agent.cleanup()
    stage.check("the node", "what is left after agent cleanup", [], agent.left())
