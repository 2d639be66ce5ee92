"""The consumer side of the access log: read what the parsers decided.

The shared library is the client: it connects to a Unix SEQPACKET socket and
sends one `cilium.LogEntry` per packet.  Whoever wants the decisions listens::

    async with AccessLog(path) as log:
        async for entry in log:
            print(json.dumps(entry_to_json(entry)))

`AccessLogServer` is the same without asyncio.
"""

from proxylib.accesslog.server import (
    MAX_CLIENTS,
    MAX_PACKET,
    AccessLog,
    AccessLogError,
    AccessLogServer,
)
from proxylib.accesslog.view import REPORT_PROTO, entry_to_json, entry_to_text, is_report

__all__ = [
    "MAX_CLIENTS",
    "MAX_PACKET",
    "REPORT_PROTO",
    "AccessLog",
    "AccessLogError",
    "AccessLogServer",
    "entry_to_json",
    "entry_to_text",
    "is_report",
]
