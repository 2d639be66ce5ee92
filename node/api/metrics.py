"""The state of the agent as gauges, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.agent.node import Node
from node.api import views
from node.proxy.status import ProxyStatus

if TYPE_CHECKING:
    from bpf.datapath import Datapath
    from bpf.sockmap import Sockmap


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
        datapath = self._node.links.datapath.datapath
        if datapath is not None:
            yield from _packets(datapath)
            yield CounterMetricFamily(
                "proxylib_datapath_repairs",
                "How often programs, routes or sysctls were put back that others had changed",
                value=self._node.links.datapath.repairs,
            )
            yield from _maps(datapath)
        sockmap = self._node.links.acceleration.sockmap
        if sockmap is not None:
            yield from _acceleration(sockmap)
        yield from _envoys(self._node.links.proxies.statuses())


def _packets(datapath: Datapath) -> Iterator[Metric]:
    """What became of the endpoints' packets."""
    from node.monitor.pinned import DIRECTIONS, reason_text

    labels = ("endpoint", "direction", "reason")
    packets = CounterMetricFamily(
        "proxylib_datapath_packets", "Packets of endpoints, by what became of them", labels=labels
    )
    octets = CounterMetricFamily(
        "proxylib_datapath_bytes",
        "Bytes of these packets, Ethernet headers included",
        labels=labels,
    )
    for one in datapath.counters():
        values = (str(one.endpoint), DIRECTIONS[one.ingress], reason_text(one.reason))
        packets.add_metric(values, one.packets)
        octets.add_metric(values, one.bytes)
    yield packets
    yield octets


def _maps(datapath: Datapath) -> Iterator[Metric]:
    pressure = GaugeMetricFamily(
        "proxylib_bpf_map_pressure", "How full a map of the programs is; 1 is full", labels=("map",)
    )
    for name, part in sorted(datapath.pressure().items()):
        pressure.add_metric((name,), part)
    yield pressure
    full = CounterMetricFamily(
        "proxylib_bpf_map_full", "How often something did not fit into a map", labels=("map",)
    )
    for name in ("ipcache", "policy"):
        full.add_metric((name,), datapath.failures[name])
    yield full


def _acceleration(sockmap: Sockmap) -> Iterator[Metric]:
    """What went past the TCP stack, and why the rest did not (bpf.sockmap.Counts)."""
    counts = sockmap.counts()
    messages = CounterMetricFamily(
        "proxylib_sockmap_messages",
        "Calls of send that went past the TCP stack, or by the wire and why",
        labels=("way",),
    )
    messages.add_metric(("past",), counts.messages)
    for why in ("off", "alone", "unread", "unproven", "blocking", "full", "spliced"):
        messages.add_metric((why,), getattr(counts, why))
    yield messages
    yield CounterMetricFamily(
        "proxylib_sockmap_bytes", "Bytes that went past the TCP stack", value=counts.bytes
    )
    yield GaugeMetricFamily(
        "proxylib_sockmap_sockets", "Sockets that take part", value=sockmap.sockets()
    )


def _envoys(statuses: Mapping[int, ProxyStatus]) -> Iterator[Metric]:
    """The Envoys of this node; endpoint 0 is the node's own, others are sidecars'."""
    up = GaugeMetricFamily("proxylib_envoy_up", "1 if an Envoy serves", labels=("endpoint",))
    restarts = CounterMetricFamily(
        "proxylib_envoy_restarts", "Starts of an Envoy after its death", labels=("endpoint",)
    )
    for number, status in statuses.items():
        up.add_metric((str(number),), bool(status.pid))
        restarts.add_metric((str(number),), status.restarts)
    yield up
    yield restarts


def _answer(acked: int, nacked: int, sent: int) -> str:
    if nacked > acked:
        return "nacked"
    return "acked" if acked == sent else "pending"
