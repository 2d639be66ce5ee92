"""How the Rebels secure their shared memcached service, with clients in namespaces of their own.

The clients of demos/memcached.py and what each may do are the same; but these know nothing of
a proxy, and what they are is known by the namespace that they are in.
"""

from __future__ import annotations

from demos.memcached import (
    ATTEMPTS,
    CLIENTS,
    JEDI,
    POLICY,
    PORT,
    READER,
    WRITER,
    client,
    content,
    memcached,
    observe,
    prepare,
)
from demos.namespaces import Lab
from demos.node.agent import NodeAgent
from demos.node.telling import brief, check_cleanup, command, confirmed, knock
from demos.stage import Stage
from node.address import Address

SERVER, STRANGER = "memcached", "stranger"
LABELS = {
    SERVER: "k8s:app=memcached",
    # As the policy spells it.
    WRITER: "k8s:function=fleet-maintanence",
    READER: "k8s:function=fleet-monitoring",
    JEDI: "k8s:role=jedi",
    STRANGER: "k8s:role=sith",
}


def tell(stage: Stage) -> None:
    """Run the story; every attempt becomes a row of `stage`."""
    stage.title("The Rebels' memcached (demos/secure-rebel-alliance-memcache.yaml)")
    with Lab(*LABELS) as lab, NodeAgent(lab) as agent:
        server = lab[SERVER]
        address = Address(server.ipv4, PORT)
        for endpoint in lab:
            agent.add(endpoint, LABELS[endpoint.name])
        with server.entered(), memcached(address) as version:
            stage.say(f"{version} at {address}")
            # Inside of its namespace, no program sees these.
            direct = client("127.0.0.1", address)
            prepare(direct)
            command(stage, agent, "policy", "import", "--wait", POLICY)
            command(stage, agent, "endpoint", "list")
            stage.table()
            with agent.monitor() as monitor:
                for who in CLIENTS:
                    for attempt in ATTEMPTS:
                        prepare(direct)
                        before = content(direct)
                        with lab[who].entered():
                            connection = client(lab[who].ipv4, address)
                            observed = observe(attempt, connection)
                            connection.close()
                        if observed == "denied" and content(direct) != before:
                            observed = "denied, and yet memcached has changed"
                        entry = monitor.request_of(lab[who].ipv4)
                        expected = "allowed" if who in attempt.allowed else "denied"
                        observed = confirmed(observed, entry)
                        stage.check(who, attempt.what, expected, observed, brief(entry))
            direct.close()
            # Whom the policy does not name has no connection at all.
            stage.check(STRANGER, "connect", "no answer", knock(lab[STRANGER], address))
        check_cleanup(stage, agent)
