"""The Envoy processes of one proxy: one that serves, its successor, and those that drain.

What is done to them is on the disk before it is done, or found out from the processes
afterwards.  When, and whether, is the supervisor's business.
"""

from __future__ import annotations

import http
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from node.envoy import READY_TIMEOUT, STOP_GRACE, ask, environment
from node.errors import SetupError
from node.proxy import handover, launch, log, state
from node.proxy.places import Places
from node.proxy.plan import PARENT_SHUTDOWN_TIME, Plan
from node.proxy.process import Process
from node.proxy.state import Generation, Role

DRAIN_GRACE = 10.0
"""Seconds beyond its time after which a draining generation is ended by us."""

_READY_TIMEOUT = 1.0
"""Seconds that an admin interface may take to say whether it serves."""


@dataclass(eq=False)
class Member:
    """A generation and its process. deadline: until when it has to serve, on the monotonic
    clock. log_start: where its log begins."""

    generation: Generation
    process: Process
    deadline: float = 0.0
    log_start: int = 0

    @property
    def role(self) -> Role:
        return self.generation.role


class Generations:
    """All that run. Used by one thread.

    drain: seconds that one which drains may take. problem: why the disk has not what is
    true; empty when it has.
    """

    def __init__(self, places: Places, drain: float = PARENT_SHUTDOWN_TIME) -> None:
        self.places = places
        self.problem = ""
        self._drain = drain
        self.members: list[Member] = []
        self._stand_ins: dict[tuple[int, int], tuple[socket.socket, float]] = {}

    def the(self, role: Role) -> Member | None:
        """The one that has a role, other than draining."""
        return next((member for member in self.members if member.role is role), None)

    @property
    def draining(self) -> list[Member]:
        return [member for member in self.members if member.role is Role.DRAINING]

    def adopt(self) -> str:
        """Take over what runs. Returns what is wrong with the state file, if anything."""
        left = state.left(self.places)
        now = time.monotonic()
        self.members = [
            Member(item, process, now + READY_TIMEOUT) for item, process in left.running
        ]
        # By the file, one serves and one may start. By the processes alone who knows: the
        # newest is asked whether it serves, and until then it is the one before.
        others = sorted((m for m in self.members if m.role is not Role.DRAINING), key=_age)
        newest = others.pop() if others else None
        for number, member in enumerate(reversed(others)):
            related = newest is not None and member.generation.base == newest.generation.base
            self._become(member, Role.SERVING if related and number == 0 else Role.DRAINING)
        for item in left.gone:
            if item.role is Role.DRAINING:
                self._stand_in(item)
        self._tidy()
        self.write()
        return left.problem

    def start(self, plan: Plan) -> Member:
        """Start the successor of the one that serves, or the first. Raises SetupError."""
        serving, netns = self.the(Role.SERVING), plan.config.netns
        if serving is None:
            base, epoch = handover.new_base(), 0
        else:
            if netns is not None:
                # Where its predecessor is, whatever has become of the path.
                netns = Path(f"/proc/{serving.process.pid}/ns/net")
            base, epoch = serving.generation.base, serving.generation.epoch + 1
            handover.clear_initializing(base)
        state.write_file(self.places.bootstrap(base, epoch), plan.bootstrap(base, epoch))
        made = Generation(
            0,
            0,
            base,
            epoch,
            Role.STARTING,
            time.time(),
            release=plan.release,
            fingerprint=plan.fingerprint,
        )
        started: list[Member] = []

        def register(process: Process) -> None:
            known = replace(made, pid=process.pid, started=process.started)
            deadline = time.monotonic() + READY_TIMEOUT
            started.append(Member(known, process, deadline, log.position(self.places.log)))
            self.members.extend(started)
            self._write()

        try:
            launch.start(
                plan.command(base, epoch),
                environment={**environment(plan.library), state.VARIABLE: state.variable(made)},
                log=self.places.log,
                log_limit=plan.config.log_limit,
                netns=netns,
                register=register,
            )
        except BaseException:
            for member in started:
                self.members.remove(member)
            self._tidy()
            raise
        return started[0]

    def ready(self, member: Member) -> bool:
        """True if it serves."""
        path = self.places.admin(*_key(member))
        try:
            status, _ = ask(path, "/ready", timeout=_READY_TIMEOUT)
        except OSError:
            return False  # not up yet
        return status == http.HTTPStatus.OK

    def has_taken_over(self, member: Member) -> bool:
        """True if one that starts has made the one that serves drain, whatever it says."""
        attached = self.places.admin(*_key(member)).exists()
        return attached and handover.taken_over(member.generation.base)

    def promote(self, member: Member) -> None:
        """It serves; the one that did drains."""
        for other in self.members:
            if other.role is Role.SERVING:
                self._become(other, Role.DRAINING)
        self._become(member, Role.SERVING)
        self.write()
        link, new = self.places.admin_link, self.places.run_dir / ".admin.new"
        with suppress(OSError):
            new.unlink(missing_ok=True)
            new.symlink_to(self.places.admin(*_key(member)).name)
            new.rename(link)

    def remove(self, member: Member) -> None:
        """It has ended."""
        self.members.remove(member)
        member.process.reap()
        member.process.close()
        if member.role is Role.DRAINING:
            self._stand_in(member.generation)
        self._tidy()
        self.write()

    def end(self, grace: float = STOP_GRACE) -> None:
        """End all, and take away everything of theirs, the log too."""
        deadline = time.monotonic() + grace
        for member in self.members:
            member.process.send(signal.SIGTERM)
        for member in self.members:
            member.process.end(max(deadline - time.monotonic(), 0))
            member.process.reap()
            member.process.close()
        self.members = []
        self.close()
        self._tidy()
        self.places.clear()

    def close(self) -> None:
        """Let go of all."""
        for member in self.members:
            member.process.close()
        for place, _ in self._stand_ins.values():
            place.close()
        self.members, self._stand_ins = [], {}

    def overdue(self) -> list[Member]:
        """Those that drain for longer than they may."""
        now = time.time()
        return [m for m in self.draining if now > m.generation.ends + DRAIN_GRACE]

    def _become(self, member: Member, role: Role) -> None:
        if member.role is role:
            return
        now = time.time()
        ends = now + self._drain if role is Role.DRAINING else 0.0
        member.generation = replace(member.generation, role=role, since=now, ends=ends)

    def write(self) -> None:
        """Have on the disk what is true, if it can be had. Who comes after us finds out."""
        try:
            self._write()
        except SetupError as error:
            self.problem = str(error)
        else:
            self.problem = ""

    def _write(self) -> None:
        state.write(self.places.state, [member.generation for member in self.members])

    def _stand_in(self, item: Generation) -> None:
        """Its successor tells it to end when its time comes, and fails if nobody is there."""
        key = item.base, item.epoch
        if time.time() < item.ends and key not in self._stand_ins:
            place = handover.stand_in(self.places, *key)
            if place is not None:
                self._stand_ins[key] = place, item.ends + DRAIN_GRACE

    def _tidy(self) -> None:
        """Take away what is of none that runs."""
        bases = {member.generation.base for member in self.members}
        for key, (place, ends) in list(self._stand_ins.items()):
            if key[0] not in bases or time.time() > ends:
                place.close()
                del self._stand_ins[key]
        kept = {_key(member) for member in self.members}
        for item in state.with_bootstrap(self.places):
            if item[0] not in bases:
                handover.tidy(self.places, item[0])
            if item not in kept:
                # The last of it to go: what has one is tidied up after.
                self.places.admin(*item).unlink(missing_ok=True)
                self.places.bootstrap(*item).unlink(missing_ok=True)


def _age(member: Member) -> tuple[int, int]:
    return member.process.started, member.generation.epoch


def _key(member: Member) -> tuple[int, int]:
    return member.generation.base, member.generation.epoch
