"""The state of the agent as gauges, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.agent.node import Node
from node.api import views


class NodeCollector(Collector):
    """Reads a `node` anew for each scrape."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> list[Metric]:
        """Nothing yet: the node may not run when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._node.repository.state
        identities = self._node.control.engine.known_identities()
        gauges = {
            "policy_revision": ("The revision in force", state.revision),
            "policies": ("Policy documents in force", len(state.policies())),
            "policy_file_problems": (
                "Errors in files of the policy directory",
                len(views.file_problems(self._node)),
            ),
            "endpoints": ("Endpoints of this node", len(state.endpoints)),
            "identities": ("Identities known here", len(identities)),
            "access_log_clients": (
                "Library instances that write to the access log",
                self._node.decisions.clients,
            ),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(f"proxylib_{name}", about, value=value)
        streams = GaugeMetricFamily(
            "proxylib_xds_streams",
            "Subscribers, by type of resource and what they made of its newest version",
            labels=("type", "state"),
        )
        counts: dict[tuple[str, str], int] = {}
        for stream in self._node.control.server.streams():
            if stream.connected:
                kind = stream.type_url.rpartition("/")[2]
                key = (
                    kind,
                    _answer(stream.acked_version, stream.nacked_version, stream.sent_version),
                )
                counts[key] = counts.get(key, 0) + 1
        for (kind, answer), count in sorted(counts.items()):
            streams.add_metric((kind, answer), count)
        yield streams


def _answer(acked: int, nacked: int, sent: int) -> str:
    if nacked > acked:
        return "nacked"
    return "acked" if acked == sent else "pending"
