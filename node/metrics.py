"""Metrics beside the printed log, for commands that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from node.address import Address, check_listen
from proxylib.proto.accesslog_pb2 import LogEntry

Consumer = Callable[[Sequence[LogEntry]], None]


@contextmanager
def counting(
    address: Address | None, show: Consumer, report: Callable[[str], None]
) -> Iterator[Consumer]:
    """What to do with entries: `show` them, and count them if metrics have an address.

    report: is told where the metrics are. Raises SetupError or AccessLogError if nobody
    can listen there.
    """
    if address is None:
        yield show
        return
    # Imported by whoever wants it: it costs a tenth of a second.
    from proxylib.accesslog.metrics import Metrics

    where = address.resolve()
    check_listen(where)
    metrics = Metrics()

    def consume(entries: Sequence[LogEntry]) -> None:
        metrics.observe(entries)
        show(entries)

    with metrics.serve(where.host, where.port) as port:
        report(f"http://{Address(where.host, port)}/metrics")
        yield consume
