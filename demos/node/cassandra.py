"""How the Empire's outposts write the daily records and cannot read them, in namespaces.

The clients of demos/cassandra.py, versions and attempts are the same; these connect to the
server's address, and what they are is known by the namespace that they are in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cassandra.cluster import Session

from demos.cassandra import (
    ATTEMPTS,
    POLICY,
    PORT,
    SCHEMA,
    WAYS,
    Attempt,
    check_content,
    connect,
    observe,
)
from demos.namespaces import Lab
from demos.node.agent import Entry, Monitor, NodeAgent
from demos.node.telling import brief, check_cleanup, command, confirmed, knock
from demos.servers.cassandra import VERSION, cassandra
from demos.stage import Stage
from node.address import Address

SERVER, OUTPOST, STRANGER = "cass-server", "outpost", "stranger"
LABELS = {SERVER: "k8s:app=cass-server", OUTPOST: "k8s:app=alpine", STRANGER: "k8s:app=rebel"}


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`. Raises Missing without Java."""
    stage.title("The Empire's Cassandra (demos/secure-empire-cassandra.yaml)")
    stage.say(f"starting Cassandra {VERSION} (the first time, Maven gets its jars)")
    with Lab(*LABELS) as lab, NodeAgent(lab) as agent:
        server = lab[SERVER]
        address = Address(server.ipv4, PORT)
        for endpoint in lab:
            agent.add(endpoint, LABELS[endpoint.name])
        with server.entered(), cassandra(address.host, port=PORT), connect(address) as direct:
            for statement in SCHEMA:
                direct.execute(statement)
            command(stage, agent, "policy", "import", "--wait", POLICY)
            command(stage, agent, "endpoint", "list")
            stage.table()
            with agent.monitor() as monitor:
                for version, compression in WAYS:
                    who = f"outpost, v{version}{f' {compression}' if compression else ''}"
                    options: dict[str, Any] = {
                        "protocol_version": version,
                        "compression": compression,
                        # The policy is older than system_virtual_schema.
                        "schema_metadata_enabled": False,
                    }
                    with lab[OUTPOST].entered(), connect(address, **options) as session:
                        _try_all(stage, who, session, version, monitor)
            stage.check(STRANGER, "connect", "no answer", knock(lab[STRANGER], address))
            check_content(stage, direct)
        check_cleanup(stage, agent)


def _try_all(stage: Stage, who: str, session: Session, version: int, monitor: Monitor) -> None:
    for attempt in ATTEMPTS:
        observed = observe(attempt, session, version)
        entry = monitor.next(_about(attempt))
        stage.check(who, attempt.what, attempt.expected, confirmed(observed, entry), brief(entry))


def _about(attempt: Attempt) -> Callable[[Entry], bool]:
    def about(entry: Entry) -> bool:
        fields = entry.get("fields", {})
        return (
            entry.get("kind") == "request"
            and fields.get("query_action") == attempt.action
            and fields.get("query_table") == attempt.table
        )

    return about
