"""How it is with what the agent has on this machine: programs, maps, Envoys, who watches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from bpf.errors import BpfError
from node.agent.node import Node
from node.agent.proxies import name as proxy_name
from node.api.models import Component
from node.monitor.hub import MAX_SUBSCRIBERS
from node.proxy.status import ProxyState, ProxyStatus

if TYPE_CHECKING:
    from bpf.datapath import Datapath

HIGH_PRESSURE = 0.9
"""A map that is this full is worth a warning: what does not fit is closed."""

_SERVES = (ProxyState.RUNNING, ProxyState.RELOADING)


def components(node: Node) -> Iterator[Component]:
    """A line for each of them."""
    datapath = node.links.datapath.datapath
    yield _datapath(node, datapath)
    if datapath is not None:
        yield _kernel(node)
        try:
            yield _maps(datapath)
        except (BpfError, OSError) as error:
            # It is being let go of.
            yield Component(name="BPF maps", state="Warning", message=str(error))
    yield _envoy(node)
    if datapath is not None:
        yield _sockmap(node)
    yield _monitor(node, datapath)


def _datapath(node: Node, datapath: Datapath | None) -> Component:
    ours = node.links.datapath
    wanted = [e for e in node.repository.state.endpoints.values() if e.attachment is not None]
    if datapath is None:
        reason = "; ".join(line.strip() for line in ours.unavailable.splitlines())
        return Component(
            name="Datapath",
            state="Failure" if wanted else "Disabled" if reason else "Ok",
            message=reason or "no endpoint has an interface",
        )
    pending = ours.pending()
    bad = len(pending)
    message = f"veth, {len(ours.attached())} of {len(wanted)} endpoints attached"
    return Component(
        name="Datapath",
        state="Warning" if bad else "Ok",
        message=message + (f", {bad} not ready (proxylib endpoint list)" if bad else ""),
        details=[
            f"maps in {datapath.config.folder}",
            f"epoch {datapath.epoch}, {ours.failures} failures, {ours.repairs} repairs",
            *(f"endpoint {number}: {reason}" for number, reason in sorted(pending.items())),
        ],
    )


def _kernel(node: Node) -> Component:
    """The start-up checks, as they are now."""
    from bpf.checks import all_checks

    found = all_checks(node.config.bpf_root)
    lacking = [check for check in found if not check.ok]
    return Component(
        name="Start-up checks",
        state="Warning" if any(check.needed for check in lacking) else "Ok",
        message=f"{len(found) - len(lacking)} of {len(found)}"
        + "".join(f", no {check.what}: {check.hint}" for check in lacking),
        details=[f"{'ok' if check.ok else 'no'}: {check.what}" for check in found],
    )


def _maps(datapath: Datapath) -> Component:
    pressure = datapath.pressure()
    refused = {name: count for name, count in datapath.failures.items() if count}
    full = [name for name, part in pressure.items() if part >= HIGH_PRESSURE]
    fullest = max(pressure, key=lambda name: pressure[name])
    return Component(
        name="BPF maps",
        state="Warning" if full or refused else "Ok",
        message=f"fullest: {fullest} {_percent(pressure[fullest])}"
        + "".join(f", {name} was full {count} times" for name, count in sorted(refused.items())),
        details=[f"{name} {_percent(part)}" for name, part in sorted(pressure.items())],
    )


def _percent(part: float) -> str:
    return f"{part:.2%}"


def _envoy(node: Node) -> Component:
    proxies = node.links.proxies
    if not proxies.enabled:
        return Component(name="Envoy", state="Disabled", message="the agent starts none")
    statuses, problems = proxies.statuses(), proxies.problems()
    if not statuses and not problems:
        idle = "none runs: no endpoint with an interface has a redirect"
        return Component(name="Envoy", state="Ok", message=idle)
    down = [status.state for n, status in statuses.items() if n in proxies.wanted()]
    down = [state for state in down if state not in _SERVES]
    starting = not problems and all(state is ProxyState.STARTING for state in down)
    return Component(
        name="Envoy",
        state="Ok" if not down and not problems else "Warning" if starting else "Failure",
        message=_envoy_text(statuses, problems),
        details=[f"{proxy_name(n)}: {_process(status)}" for n, status in statuses.items()]
        + [f"{proxy_name(n)}: {problem}" for n, problem in sorted(problems.items())],
    )


def _envoy_text(statuses: Mapping[int, ProxyStatus], problems: Mapping[int, str]) -> str:
    if problems:
        return next(f"{proxy_name(n)}: {problem}" for n, problem in sorted(problems.items()))
    first = statuses[min(statuses)]
    more = len(statuses) - 1
    worst = next((s for s in statuses.values() if s.state not in _SERVES), first)
    return _process(worst) + (f", {more} more" if more else "")


def _process(status: ProxyStatus) -> str:
    """What it does, and since when."""
    if status.state is ProxyState.WAITING:
        wait = max(0, status.next_start - time.time())
        return f"died ({status.last_error}), starts again in {wait:.0f} s"
    if not status.pid:
        return str(status.state)
    minutes, seconds = divmod(int(max(0, time.time() - status.since)), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{status.state}, pid {status.pid}, {status.release}, generation {status.epoch}, "
    text += f"up {hours}:{minutes:02}:{seconds:02}"
    if status.restarts:
        text += f", {status.restarts} restarts"
    if status.draining:
        text += f", {len(status.draining)} older draining"
    return text + (f", {status.last_error}" if status.last_error else "")


def _sockmap(node: Node) -> Component:
    """Who takes part, and what the self-test has found."""
    ours = node.links.acceleration
    sockmap = ours.sockmap
    if sockmap is None:
        return Component(
            name="Sockmap",
            state="Warning" if ours.problem else "Disabled",
            message=ours.problem or "no endpoint asks for it",
        )
    checks = sockmap.self_test.checks
    passed = f"self-test: {sum(check.ok for check in checks)} of {len(checks)}"
    return Component(
        name="Sockmap",
        state="Warning" if ours.problem or sockmap.self_test.refusal else "Ok",
        message=f"{len(ours.joined)} endpoints take part, {passed}"
        + (f", {ours.problem}" if ours.problem else ""),
        details=[f"{'ok' if c.ok else 'no'}: {c.name}: {c.sentence}" for c in checks],
    )


def _monitor(node: Node, datapath: Datapath | None) -> Component:
    """As ``cilium status`` has it, where there are events."""
    watching = f"{node.monitor.hub.subscribers} of {MAX_SUBSCRIBERS} watch (proxylib monitor)"
    if datapath is None:
        return Component(name="NodeMonitor", state="Ok", message=watching)
    return Component(name="NodeMonitor", state="Ok", message=f"{_ring(datapath)}, {watching}")


def _ring(datapath: Datapath) -> str:
    from bpf.schema import MAPS
    from bpf.syscall import possible_cpus

    size = datapath.config.sizes.get("events", MAPS["events"].size)
    return (
        f"Listening for events on {possible_cpus()} CPUs with {size // 4096}x4096 of shared memory"
    )
