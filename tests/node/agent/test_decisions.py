"""What proxies log is counted."""

from __future__ import annotations

import socket
from pathlib import Path

from proxylib.proto.accesslog_pb2 import EntryType, L7LogEntry, LogEntry
from tests.native.services import wait_for
from tests.node.agents import running


def test_entries_are_counted(short_path: Path) -> None:
    with running(short_path) as agent:
        assert agent.node is not None
        decisions = agent.node.decisions
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as proxy:
            proxy.connect(str(agent.config.access_log_path))
            for kind in (EntryType.Request, EntryType.Denied, EntryType.Denied):
                l7 = L7LogEntry(proto="r2d2", fields={"cmd": "READ"})
                entry = LogEntry(entry_type=kind, is_ingress=True, generic_l7=l7)
                proxy.send(entry.SerializeToString())
            proxy.send(b"\xff garbage")
            wait_for(lambda: decisions.entries == 4, "the entries")
            assert decisions.clients == 1
            denied = (
                'proxylib_requests_total{direction="ingress",operation="READ",parser="r2d2",'
                'verdict="denied"} 2.0'
            )
            wait_for(lambda: denied in agent.http.get("/metrics").text, "the count")
        wait_for(lambda: decisions.clients == 0, "the proxy to be missed")
        assert "proxylib_log_undecodable_total 1.0" in agent.http.get("/metrics").text
