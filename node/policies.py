"""The control server of one proxy: which rules are in force, told as it changes.

It also looks whether the policies are about this proxy at all: a policy that
selects another endpoint, or another port, protects nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from node.address import Address
from node.errors import SetupError
from proxylib.errors import ProxylibError
from xds.compilation import NETWORK_POLICY
from xds.control import ControlServer
from xds.labels import LabelSet
from xds.policy import Policy, PortRule, Rule
from xds.source import Problem

LOOPBACK = ("127.0.0.1", "::1")

RELOAD_TIMEOUT = 10.0
"""Seconds after which a new version that is not in force is reported as such."""

Report = Callable[..., None]
"""``report(kind, message, role, **data)``."""


class PolicyServer:
    """Serves `policies` on `socket_path` while its block lasts.

    destination: the upstream as policies know it. egress: the policies that count
    are the clients'. watch: take up edits. on_event: what happens (run.Event).
    Entering raises PolicyError for documents that cannot be put in force.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        policies: Sequence[Path],
        endpoints: Path | None,
        parser: str,
        destination: Address,
        egress: bool,
        watch: bool,
        on_event: Report,
    ) -> None:
        self._policies = policies
        self._endpoints = endpoints
        self._parser = parser
        self._destination = destination
        self._egress = egress
        self._report = on_event
        self._extra = (destination.host, *(LOOPBACK if egress else ()))
        self._watching = watch and bool(policies or endpoints)
        self.control = ControlServer(
            socket_path,
            policies,
            endpoints,
            extra_endpoints=dict.fromkeys(self._extra),
            watch_files=self._watching,
            on_error=self._bad_edit,
            on_change=self._edited,
        )

    def __enter__(self) -> Self:
        self._look_at(self.control.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.control.stop()

    @property
    def version(self) -> int:
        """Of the rules that are being served."""
        return self.control.status().versions[NETWORK_POLICY]

    def wait_in_force(self, timeout: float) -> None:
        """Return when the library enforces the newest rules; report that.

        Raises SetupError, with the library's reason, if it does not within
        `timeout` seconds.
        """
        problem = self._in_force(timeout)
        if problem:
            raise SetupError(problem)

    def _in_force(self, timeout: float) -> str:
        """Report that the newest version is in force, or return why it is not."""
        deadline = time.monotonic() + timeout
        while not self.control.wait_acked(min(0.25, timeout)):
            status = self.control.status()
            for stream in status.streams:
                if stream.nacked_version > stream.acked_version:
                    return f"the library refuses the rules: {stream.reason}"
            if time.monotonic() > deadline:
                return f"the rules are not in force after {timeout:g} s"
        status = self.control.status()
        version = status.versions[NETWORK_POLICY]
        self._report(
            "rules",
            f"rules in force (version {version}){self._openness()}",
            "good",
            version=version,
            policies=status.policies,
            endpoints=status.endpoints,
        )
        return ""

    def _edited(self, warnings: Sequence[Problem]) -> None:
        self._look_at(warnings)
        problem = self._in_force(RELOAD_TIMEOUT)
        if problem:
            self._report("rules-not-in-force", problem, "error")

    def _bad_edit(self, error: ProxylibError) -> None:
        self._report(
            "bad-edit",
            f"the edit is not taken up, version {self.version} stays in force:\n{error}",
            "error",
            version=self.version,
        )

    def _look_at(self, warnings: Iterable[Problem]) -> None:
        for warning in warnings:
            self._report("policy-warning", str(warning), "warning")
        if not self._policies:
            return
        message = self._irrelevance()
        if message:
            self._report("irrelevant-policy", message, "warning")

    def _openness(self) -> str:
        """What to say of rules that allow everything; "" if there is a rule about the proxy."""
        policies = self.control.loaded.policies
        if not policies:
            return ", without a policy: everything is allowed"
        subjects, who = self._subjects()
        if rules_of(policies, subjects, ingress=not self._egress):
            return ""
        return f", none about {who}: everything is allowed"

    def _irrelevance(self) -> str:
        """Why the policies do not protect what this proxy is for; "" if they do."""
        subjects, who = self._subjects()
        return irrelevance(
            self.control.loaded.policies,
            subjects,
            who,
            ingress=not self._egress,
            port=self._destination.port,
            parser=self._parser,
        )

    def _subjects(self) -> tuple[list[LabelSet], str]:
        """Those whose policies count here, and what to call them."""
        everybody = self.control.loaded.endpoints
        if self._egress:
            return [endpoint.labels for endpoint in everybody], "any endpoint's egress"
        host = self._destination.host
        labels = [endpoint.labels for endpoint in everybody if host in endpoint.addresses]
        return labels, f"the ingress of the upstream {host} (labels: {str(labels[0]) or 'none'})"


def rules_of(
    policies: Sequence[Policy], subjects: Sequence[LabelSet], *, ingress: bool
) -> list[Rule]:
    """The rules of a direction that `policies` have for any of `subjects`."""
    return [
        rule
        for policy in policies
        if any(policy.subject.matches(labels) for labels in subjects)
        for rule in policy.rules(ingress=ingress)
    ]


def irrelevance(
    policies: Sequence[Policy],
    subjects: Sequence[LabelSet],
    who: str,
    *,
    ingress: bool,
    port: int,
    parser: str,
) -> str:
    """Why `policies` say nothing about `port` of `subjects` for `parser`; "" if they do.

    who: what to call the subjects in the message.
    """
    rules = rules_of(policies, subjects, ingress=ingress)
    if not rules:
        return f"no policy is about {who}: EVERYTHING IS ALLOWED"
    ports = [entry for rule in rules for entry in rule.ports or ()]
    if any(rule.ports is None for rule in rules):
        return ""
    covering = [entry for entry in ports if _covers(entry, port)]
    if not covering:
        named = sorted({p.port for entry in ports for p in entry.ports}, key=str)
        return (
            f"no policy is about port {port} of {who}, only about {', '.join(map(str, named))}: "
            "nothing is allowed"
        )
    protos = {entry.l7.proto for entry in covering if entry.l7 is not None}
    if protos and parser not in protos:
        others = ", ".join(sorted(protos))
        return f"the policies for port {port} are for l7proto {others}, not {parser}"
    return ""


def _covers(entry: PortRule, port: int) -> bool:
    return any(
        # What a name stands for is known only where the port is open.
        isinstance(p.port, str) or p.port == 0 or p.port <= port <= (p.end_port or p.port)
        for p in entry.ports
    )
