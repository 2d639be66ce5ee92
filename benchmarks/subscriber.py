"""A library instance as far as policies go, for benchmarks/policy.py: its client, compiling.

Writes a line, the monotonic clock's seconds, when it has put a version in force.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from proxylib import npds
from proxylib.hosts import compile_hosts
from proxylib.policy import PolicyMap, compile_policies
from proxylib.registry import get_parser_factory


class Subscriber:
    """What is in force here."""

    def __init__(self) -> None:
        self.policy = PolicyMap()

    def policies(self, version: str, resources: Sequence[bytes]) -> None:
        self.policy = compile_policies(
            resources, get_parser_factory, version=version, previous=self.policy
        )
        print(time.monotonic(), flush=True)

    def hosts(self, version: str, resources: Sequence[bytes]) -> None:
        compile_hosts(resources, version=version)


def main(path: str) -> None:
    """Subscribe at the socket `path` until killed."""
    subscriber = Subscriber()
    get_parser_factory("memcache")
    npds.Client(
        path,
        "benchmark",
        [
            npds.Subscription(npds.POLICY_TYPE, npds.POLICY_METHOD, subscriber.policies),
            npds.Subscription(npds.HOSTS_TYPE, npds.HOSTS_METHOD, subscriber.hosts),
        ],
    )
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
