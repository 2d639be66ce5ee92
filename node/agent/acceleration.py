"""Which endpoints' bytes go past the TCP stack (bpf/sockmap.py): those that ask for it.

Nothing is loaded, and the kernel is not tested, before the first endpoint asks.  What is
pinned outlives the agent, as the programs do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from bpf.errors import BpfError
from node.agent.endpoints import NodeEndpoint

if TYPE_CHECKING:
    from bpf.sockmap import Sockmap

RETRY = 60.0
"""Seconds until it is opened again where that has failed: the self-test takes its time."""

log = logging.getLogger(__name__)


class Acceleration:
    """Keeps who takes part. Safe for threads.

    opener: opens it; raises BpfError. left_over: whether an agent before us has left
    something pinned. disabled: why nobody may take part; empty: whoever asks may.
    """

    def __init__(
        self, opener: Callable[[], Sockmap], left_over: Callable[[], bool], disabled: str = ""
    ) -> None:
        self._opener, self._left_over = opener, left_over
        self._disabled = disabled
        self._lock = threading.Lock()
        self._sockmap: Sockmap | None = None
        self._joined: dict[int, NodeEndpoint] = {}
        self._problem = ""
        self._retry_at = 0.0

    @property
    def sockmap(self) -> Sockmap | None:
        """What is open: its self-test and its counters."""
        return self._sockmap

    @property
    def problem(self) -> str:
        """Why endpoints that ask for it do not take part; empty if they do, or nobody asks."""
        return self._problem

    @property
    def joined(self) -> Collection[int]:
        """The endpoints that take part."""
        return tuple(self._joined)

    def check(self) -> None:
        """Have it ready for an endpoint. Raises BpfError, with what the self-test says."""
        if self._disabled:
            raise BpfError(self._disabled)
        with self._lock:
            refusal = self._open().self_test.refusal
        if refusal:
            raise BpfError(refusal)

    def settle(self, wanted: Mapping[int, NodeEndpoint]) -> None:
        """Exactly these take part. What cannot be done is `problem`, and harms nobody."""
        refused = self._disabled if wanted else ""
        if self._disabled:
            wanted = {}
        with self._lock:
            if self._sockmap is None:
                if not (wanted or self._left_over()):
                    self._note(refused)
                    return
                if time.monotonic() < self._retry_at:
                    return
            try:
                self._settle(self._open(), wanted)
                self._note(refused)
            except BpfError as error:
                self._retry_at = time.monotonic() + RETRY
                self._note(str(error))

    def bump(self) -> None:
        """Policies have changed: connections are judged again."""
        with self._lock:
            if self._sockmap is not None:
                self._sockmap.bump()

    def close(self) -> None:
        """Let go; who takes part goes on."""
        with self._lock:
            if self._sockmap is not None:
                self._sockmap.close()
                self._sockmap = None

    def _open(self) -> Sockmap:
        if self._sockmap is None:
            self._sockmap = self._opener()
        return self._sockmap

    def _settle(self, sockmap: Sockmap, wanted: Mapping[int, NodeEndpoint]) -> None:
        addresses = {address for endpoint in wanted.values() for address in endpoint.addresses}
        strangers = sockmap.members() - addresses
        if strangers:
            sockmap.leave(strangers)
        self._joined = {n: e for n, e in self._joined.items() if n in wanted}
        for number, endpoint in wanted.items():
            if self._joined.get(number) is not endpoint:
                assert endpoint.attachment is not None
                sockmap.join(endpoint.addresses, endpoint.attachment.netns)
                self._joined[number] = endpoint

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.error("sockmap: %s; these endpoints go by the wire", problem)
        self._problem = problem
