"""One Envoy, kept running: started, taken over, watched, replaced without a gap.

All that happens to it happens in one thread, which sleeps until a process ends, somebody
asks for something, or a time comes.  `status` is what that thread last made known.

A hot restart starts the next generation beside the one that serves; when it serves, the
old one drains.  Should it end before, or take too long, the old one has never stopped
serving.  Only one drains at a time: a further hot restart waits until it has ended.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from node.envoy import READY_TIMEOUT, describe
from node.errors import NodeError, SetupError
from node.proxy import log, plan
from node.proxy.generations import Generations, Member
from node.proxy.plan import Plan, ProxyConfig, Signature
from node.proxy.rehearsal import rehearse
from node.proxy.state import Role
from node.proxy.status import Draining, ProxyEvent, ProxyState, ProxyStatus
from node.proxy.turns import Turn

_log = logging.getLogger(__name__)

FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""Seconds until the second start after a death, doubled each time; the first is at once."""

RAN_WELL = 60.0
"""Seconds of service after which a death is the first one again."""

LOOK_EVERY = 5.0
"""Seconds between looks at the log's size and at the files that Envoy was started from."""

RELOAD_AGAIN = 600.0
"""Seconds after which a hot restart that failed is tried again, if it is still due."""

READY_EVERY = 0.05
"""Seconds between questions to a generation that starts whether it serves."""


class Proxy:
    """The Envoy of a node or of a sidecar. Construct it, then `ensure` or `start`.

    One that runs already is taken over at once. on_event: called from a thread of ours.
    Raises SetupError if the folder cannot be had: somebody else looks after it.
    """

    def __init__(
        self, config: ProxyConfig, on_event: Callable[[ProxyEvent], None] = lambda event: None
    ) -> None:
        self.config = config
        self.places = config.places
        self._on_event = on_event
        self._lock = self.places.take()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Guards what other threads see, or ask for.
        self._changed = threading.Condition()
        self._status = ProxyStatus()
        self._wanted = self._reload = self._stopping = self._closing = False
        self._prepared: tuple[Plan | NodeError, Turn] | None = None
        # The rest is for our thread alone.
        self._generations = Generations(self.places, config.parent_shutdown_time)
        self._preparing: object | None = None
        self._turn: Turn | None = None
        self._next_start = self._next_look = 0.0
        self._failures = self._restarts = 0
        self._last_error = ""
        self._looked: Signature | None = None
        self._compared: Signature | None = None
        self._compare_again = math.inf
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        try:
            self._adopt()
        except BaseException:
            self._let_go()
            raise
        self._thread.start()

    @property
    def status(self) -> ProxyStatus:
        """How it is."""
        with self._changed:
            return self._status

    def ensure(self) -> None:
        """Have it run from now on. Returns at once."""
        with self._changed:
            self._wanted = True
        self._rouse()

    def start(self, timeout: float = READY_TIMEOUT) -> ProxyStatus:
        """`ensure`, and wait until it serves. Raises SetupError if it dies before that."""
        failures = self.status.failures
        self.ensure()
        status = self.wait(lambda s: s.pid > 0 or s.failures > failures, timeout)
        if not status.pid:
            raise SetupError(status.last_error or f"Envoy was not ready after {timeout:g} s")
        return status

    def reload(self) -> None:
        """Have a new generation take over, as soon as none drains. Returns at once."""
        with self._changed:
            self._reload = self._wanted = True
        self._rouse()

    def wait(self, check: Callable[[ProxyStatus], bool], timeout: float) -> ProxyStatus:
        """Wait until `check` is true of the status, at most `timeout` seconds; the status."""
        with self._changed:
            self._changed.wait_for(lambda: check(self._status), timeout)
            return self._status

    def stop(self) -> None:
        """End it, with all its connections, and forget it; this object is used up."""
        with self._changed:
            self._stopping = True
        self._rouse()
        self._thread.join()
        self._let_go()

    def close(self) -> None:
        """Let go of it: it goes on. This object is used up."""
        with self._changed:
            self._closing = True
        self._rouse()
        self._thread.join()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rouse(self) -> None:
        with self._changed:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _let_go(self) -> None:
        with self._changed:
            if self._wake < 0:
                return
            self._generations.close()
            self._forget_prepared()
            self._end_turn()
            os.close(self._lock)
            os.close(self._wake)
            self._wake = -1

    # -- our thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                stopping = self._stopping
            if stopping:
                self._generations.end()
                self._publish()
                self._tell("proxy-stopped", "Envoy is stopped")
                return
            try:
                self._step()
                self._end_turn()
                self._publish()
                self._sleep()
            except Exception:  # An Envoy that nobody watches would be worse.
                _log.exception("the watch over Envoy failed; it goes on")
                time.sleep(LOOK_EVERY)

    def _step(self) -> None:
        for member in list(self._generations.members):
            if member in self._generations.members and member.process.ended:
                self._died(member)
        for member in self._generations.overdue():
            self._tell("proxy-drained", "the old Envoy does not end; it is killed", "warning")
            member.process.end(0)
        starting = self._generations.the(Role.STARTING)
        if starting is not None:
            self._await_ready(starting)
        self._look()
        self._take_prepared()
        self._begin()

    def _await_ready(self, member: Member) -> None:
        if self._generations.ready(member):
            self._promote(member)
        elif time.monotonic() > member.deadline:
            member.process.end(0)
            self._died(member, f"was not ready after {READY_TIMEOUT:g} s")

    def _promote(self, member: Member) -> None:
        old = self._generations.the(Role.SERVING)
        self._generations.promote(member)
        self._last_error = ""
        pid, epoch = member.generation.pid, member.generation.epoch
        if old is None:
            self._tell("proxy-running", f"Envoy runs, process {pid}", pid=pid, epoch=epoch)
        else:
            seconds = self.config.parent_shutdown_time
            self._tell(
                "proxy-reloaded",
                f"a new Envoy has taken over, process {pid}; the old one, "
                f"{old.generation.pid}, drains for {seconds} s at most",
                "good",
                pid=pid,
                epoch=epoch,
            )

    def _died(self, member: Member, how: str = "") -> None:
        lines = log.tail(self.places.log, member.log_start)
        how = how or _end_in_words(member.process.status())
        pid = member.generation.pid
        ran = time.time() - member.generation.since
        starting, serving = map(self._generations.the, (Role.STARTING, Role.SERVING))
        if member is starting and serving is not None and self._generations.has_taken_over(member):
            # Too late to go back: the old one accepts no connections any more.
            self._promote(member)
        self._generations.remove(member)
        if member.role is Role.DRAINING:
            self._tell("proxy-drained", f"the old Envoy, process {pid}, has ended", pid=pid)
        elif member.role is Role.STARTING and serving is not None:
            self._give_up(log.obituary(f"the new Envoy, process {pid}, {how}", lines))
        else:
            if member.role is Role.SERVING and starting is not None and starting is not member:
                # It waits for answers of the one that died.
                starting.process.end(0)
                self._generations.remove(starting)
            self._forget_prepared()
            if member.role is Role.SERVING and ran > RAN_WELL:
                self._failures = 0
            self._fail(log.obituary(f"Envoy, process {pid}, {how}", lines))

    def _give_up(self, reason: str) -> None:
        """The hot restart failed; the one before serves on."""
        self._compare_again = time.monotonic() + RELOAD_AGAIN
        self._last_error = f"the old Envoy goes on: {reason}"
        self._tell("proxy-reload-failed", self._last_error, "error")

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._last_error = reason
        delay = 0.0
        if self._failures > 1:
            delay = min(FIRST_BACKOFF * 2.0 ** (self._failures - 2), MAX_BACKOFF)
        self._next_start = time.monotonic() + delay
        when = f"in {delay:g} s" if delay else "at once"
        self._tell(
            "proxy-died",
            f"{reason}\nit is started again {when}",
            "error",
            failures=self._failures,
            next_start=delay,
        )

    def _look(self) -> None:
        """Now and then: is the log too long, have the files changed?"""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        self._rotate()
        if self._generations.problem:
            self._tell("proxy-state", self._generations.problem, "error")
            self._generations.write()
        serving = self._generations.the(Role.SERVING)
        if serving is not None and time.time() - serving.generation.since > RAN_WELL:
            self._failures = 0
        before, self._looked = self._looked, plan.signature(self.config)
        # Twice the same: nobody is installing just now.
        settled = self._looked is not None and self._looked == before
        if serving is None or not settled:
            return
        if self._looked == self._compared and now < self._compare_again:
            return
        self._compared, self._compare_again = self._looked, math.inf
        try:
            found = plan.make(self.config).fingerprint
        except SetupError:
            return
        changes = found.differences(serving.generation.fingerprint)
        if changes:
            self._tell("proxy-outdated", f"Envoy's {' and '.join(changes)} changed")
            with self._changed:
                self._reload = True

    def _rotate(self) -> None:
        log.rotate(self.places.log, self.places.log_before, self.config.log_limit)

    def _begin(self) -> None:
        """Prepare a start, if one is due. Preparing takes its time, and is another thread's."""
        serving = self._generations.the(Role.SERVING)
        with self._changed:
            due = self._wanted and time.monotonic() >= self._next_start
            if serving is not None:
                due = self._reload and not self._generations.draining
            if not due or self._preparing or self._generations.the(Role.STARTING) is not None:
                return
            self._reload = False
            self._preparing = preparing = object()

        def prepare() -> None:
            turn = Turn()
            made: Plan | NodeError
            try:
                made = found = plan.make(self.config)
                if serving is not None:
                    rehearse(found)
            except NodeError as error:
                made = error
            except Exception as error:
                _log.exception("a start of Envoy could not be prepared")
                made = SetupError(f"Envoy's start could not be prepared: {error!r}")
            with self._changed:
                if self._preparing is preparing:
                    self._prepared = made, turn
                else:
                    turn.end()
            self._rouse()

        threading.Thread(target=prepare, name="proxy-plan", daemon=True).start()

    def _take_prepared(self) -> None:
        with self._changed:
            if self._prepared is None:
                return
            made, self._turn = self._prepared
            self._preparing = self._prepared = None
        serving = self._generations.the(Role.SERVING)
        try:
            if isinstance(made, NodeError):
                raise made
            self._rotate()
            self._generations.start(made)
        except NodeError as error:
            if serving is not None:
                self._give_up(str(error))
            else:
                self._fail(str(error))
        else:
            self._restarts += serving is None and self._failures > 0

    def _forget_prepared(self) -> None:
        with self._changed:
            if self._prepared is not None:
                self._prepared[1].end()
            self._preparing = self._prepared = None

    def _end_turn(self) -> None:
        """Nothing of ours starts any more."""
        if self._turn is not None and self._generations.the(Role.STARTING) is None:
            self._turn.end()
            self._turn = None

    def _adopt(self) -> None:
        problem = self._generations.adopt()
        if problem:
            self._tell("proxy-state", problem, "warning")
        for member in self._generations.members:
            self._wanted = True
            item = member.generation
            self._tell(
                "proxy-adopted",
                f"an Envoy runs already, process {item.pid}, {item.role}: taken over",
                pid=item.pid,
                epoch=item.epoch,
            )
        self._publish()

    def _sleep(self) -> None:
        now = time.monotonic()
        times = []
        if self._generations.members:
            times.append(self._next_look)
        if self._generations.the(Role.STARTING) is not None:
            times.append(now + READY_EVERY)
        elif self._wanted and self._generations.the(Role.SERVING) is None and not self._preparing:
            times.append(self._next_start)
        poll = select.poll()
        for member in self._generations.members:
            poll.register(member.process, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll(max(min(times) - now, 0) * 1000 + 1 if times else None)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _publish(self) -> None:
        """Make known how it is."""
        generations = self._generations
        serving, starting = generations.the(Role.SERVING), generations.the(Role.STARTING)
        with self._changed:
            status = ProxyStatus(
                restarts=self._restarts,
                failures=self._failures,
                draining=tuple(
                    Draining(m.generation.pid, m.generation.epoch, m.generation.ends)
                    for m in generations.draining
                ),
                reload_waits=self._reload and bool(generations.draining),
                last_error=self._last_error,
            )
            if serving is not None:
                item = serving.generation
                reloading = starting is not None or self._preparing is not None
                status = replace(
                    status,
                    state=ProxyState.RELOADING if reloading else ProxyState.RUNNING,
                    pid=item.pid,
                    epoch=item.epoch,
                    release=item.release,
                    since=item.since,
                    admin=self.places.admin(item.base, item.epoch),
                )
            elif starting is not None or self._preparing is not None:
                status = replace(status, state=ProxyState.STARTING)
            elif self._wanted and not self._stopping:
                delay = max(self._next_start - time.monotonic(), 0)
                status = replace(
                    status,
                    state=ProxyState.WAITING if delay else ProxyState.STARTING,
                    next_start=time.time() + delay if delay else 0.0,
                )
            if status != self._status:
                self._status = status
                self._changed.notify_all()

    def _tell(self, kind: str, message: str, role: str = "dim", **data: object) -> None:
        try:
            self._on_event(ProxyEvent(kind, message, data, role))
        except Exception:
            _log.exception("whoever is told about Envoy failed")


def _end_in_words(status: int | None) -> str:
    if status is None:
        return "has ended, nobody knows how"
    return f"was {describe(status)}" if status < 0 else f"ended with {describe(status)}"
