"""nginx-ingress: who may reach an nginx, and then, what they may ask it for.

Two nginx, an alpine and an ubuntu, each in a network namespace.  The same curl is tried before
there is a policy, under one about addresses and ports, and under one about requests: what is
denied by the first kind times out (000), what is denied by the second is answered (403).
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial

import click

from demos.namespaces import Endpoint, Lab
from demos.node.agent import Entry, Monitor, NodeAgent
from demos.node.telling import check_cleanup, command, said
from demos.servers.nginx import nginx
from demos.stage import HERE, Stage
from node.address import Address
from node.monitor.lines import line

L4 = HERE / "node/nginx-ingress-l4.yaml"
L7 = HERE / "node/nginx-ingress-l7.yaml"

SERVERS, ALLOWED, OTHER = ("nginx-0", "nginx-1"), "alpine", "ubuntu"
LABELS = {"nginx-0": "nginx", "nginx-1": "nginx", ALLOWED: "alpine", OTHER: "ubuntu"}
FILES = {"index.html": b"hello\n", "welcome": b"welcome\n"}

_LABELS = r"\(\[[^]]*k8s:app=(\w+)[^]]*\]\)"
MONITORED = tuple(
    re.compile(text.format(labels=_LABELS))
    for text in (
        r"<- Request http from \d+ {labels} to \d+ {labels}, identity \d+->\d+, "
        r"verdict Denied HEAD http://nginx/ => 403",
        r"<- Request http from \d+ {labels} to \d+ {labels}, identity \d+->\d+, "
        r"verdict Forwarded GET http://nginx/welcome => 0",
        r"<- Response http to \d+ {labels} from \d+ {labels}, identity \d+->\d+, "
        r"verdict Forwarded GET http://nginx/welcome => 200",
    )
)
"""What the monitor prints about the two requests of the last act: the text's lines, but for
numbers and labels."""

DROPPED = re.compile(
    rf"xx drop \(Policy denied\) .* from \d+ {_LABELS} to \d+ {_LABELS}: \S+ -> \S+:80 tcp SYN"
)
"""And about a connection that is denied before."""


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`."""
    stage.title("An nginx and its clients (demos/node/nginx-ingress-l4.yaml, -l7.yaml)")
    with Lab(*LABELS) as lab, NodeAgent(lab) as agent, ExitStack() as servers:
        for name in SERVERS:
            with lab[name].entered():
                folder = lab.folder / name
                folder.mkdir(mode=0o755)
                servers.enter_context(nginx(Address(lab[name].ipv4, 80), folder, FILES))
        for endpoint in lab:
            agent.add(endpoint, f"k8s:app={LABELS[endpoint.name]}")
        command(stage, agent, "endpoint", "list")

        stage.table("without a policy")
        for client in (ALLOWED, OTHER):
            _head(stage, lab, client, "200")

        command(stage, agent, "policy", "import", "--wait", L4)
        stage.table("who may reach it")
        with agent.monitor("drop") as monitor:
            _head(stage, lab, ALLOWED, "200")
            _head(stage, lab, OTHER, "000")
            _show(stage, monitor, DROPPED)
        stage.check("the node", "Envoys that this takes", 0, len(agent.envoys()))

        command(stage, agent, "policy", "import", "--wait", L7)
        stage.table("what it may be asked for")
        with agent.monitor() as monitor:
            _head(stage, lab, ALLOWED, "403")
            _get(stage, lab, ALLOWED, "200")
            _head(stage, lab, OTHER, "000")
            for pattern in MONITORED:
                _show(stage, monitor, pattern)
        command(stage, agent, "status")
        seen = _curl(lab[ALLOWED], lab["nginx-0"], "/welcome", "-w", "%header{x-client-address}")
        stage.check("nginx-0", "sees its client's address", lab[ALLOWED].ipv4, seen)
        check_cleanup(stage, agent)


def _head(stage: Stage, lab: Lab, client: str, expected: str) -> None:
    """The request of the story, to both of the servers."""
    for server in SERVERS:
        observed = _curl(lab[client], lab[server], "/", "-I", "-w", "%{http_code}")
        stage.check(client, f"curl -I http://{server}", expected, observed)


def _get(stage: Stage, lab: Lab, client: str, expected: str) -> None:
    for server in SERVERS:
        more = ("-I", "-X", "GET", "-w", "%{http_code}")
        observed = _curl(lab[client], lab[server], "/welcome", *more)
        stage.check(client, f"curl -I -X GET http://{server}/welcome", expected, observed)


def _curl(client: Endpoint, server: Endpoint, path: str, *options: str) -> str:
    """curl as in the text; that the name nginx is this server is all that is added to it."""
    known = ("--resolve", f"nginx:80:{server.ipv4}", "--noproxy", "*", "--max-time", "2")
    quiet = ("-s", "-o", "/dev/null")
    return client.run("curl", *quiet, *known, *options, f"http://nginx{path}").stdout


def _show(stage: Stage, monitor: Monitor, pattern: re.Pattern[str]) -> None:
    """The next line of the monitor that reads so; there has to be one."""
    entry = monitor.next(partial(_reads, pattern))
    if entry is not None:
        said(stage, click.style(line(entry, 1), dim=True))
    what = "a drop" if pattern is DROPPED else pattern.pattern.rpartition("verdict ")[2]
    stage.check("proxylib monitor", what, "there", "there" if entry else "not there")


def _reads(pattern: re.Pattern[str], entry: Entry) -> bool:
    return pattern.fullmatch(line(entry, 1)) is not None
