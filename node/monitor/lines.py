"""Entries as lines for people, as ``cilium monitor`` writes them.

Whatever a client sent, a line stays one line and moves no cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from node.tables import safe
from proxylib.accesslog.metrics import OPERATIONS

Paint = Callable[[str, str], str]
"""``paint(text, role)``: the text in the colours of its role (console.paint)."""

OBJECTS = ("file", "keys", "query_table", "topic", "channels")
"""Fields that say what a request is about: shown by their values alone, as operations are."""

_ROLES = {"Forwarded": "allowed", "Denied": "denied", "Error": "denied", "Audit": "warning"}
_ACTIONS = {"allow": "allowed", "redirect": "allowed", "deny": "denied", "audit": "warning"}
_ARROWS = {"ingress": "<-", "egress": "->"}

Entry = Mapping[str, Any]


def line(entry: Entry, verbose: int = 0, paint: Paint = lambda text, role: text) -> str:
    """One entry. verbose: 1: with the labels of both ends; 2: and with time and addresses.

    An entry of a type that is not known here (a newer agent's) is shown as it is.
    """
    write = _WRITERS.get(str(entry.get("type")))
    if write is None:
        return safe(str(dict(entry)))
    text = write(entry, verbose, paint)
    if verbose > 1 and "time" in entry:
        text = f"{paint(safe(str(entry['time'])), 'dim')} {text}"
    return text


def _l7(entry: Entry, verbose: int, paint: Paint) -> str:
    source, destination = entry["source"], entry["destination"]
    ends = _end(source, verbose), _end(destination, verbose)
    if entry["kind"] == "response":
        head = "Response {} to {} from {}"
    else:
        head = "Request {} from {} to {}"
    verdict = str(entry["verdict"])
    proto = safe(entry["proto"]) or "unparsed"
    said = _SAID.get(proto, _generic)(entry["fields"])
    text = (
        f"{_ARROWS.get(entry['direction'], '--')} {head.format(proto, *ends)}, "
        f"{_identities(entry)}, verdict {paint(safe(verdict), _ROLES.get(verdict, 'dim'))} "
        f"{' '.join(filter(None, map(safe, said)))}"
    ).rstrip()
    if verbose > 1:
        more = [f"{source['address']} -> {destination['address']}"]
        if entry.get("latency_ns"):
            more.append(f"latency {entry['latency_ns'] / 1e6:.3f} ms")
        if entry.get("rule"):
            more.append(f"rule {entry['rule']}")
        text += paint(safe(f" ({', '.join(more)})"), "dim")
    return text


def _http(fields: Entry) -> Iterator[str]:
    url = f"{fields.get('scheme') or 'http'}://{fields.get('host', '')}{fields.get('path', '')}"
    yield f"{fields.get('method', '')} {url}"
    yield f"=> {fields.get('status', 0)}"


def _kafka(fields: Entry) -> Iterator[str]:
    yield str(fields.get("api") or fields.get("api_key", ""))
    topics = fields.get("topics")
    if topics:
        yield f"topic {', '.join(map(str, topics))}"
    yield f"=> {fields.get('status') or fields.get('error_code', 0)}"


def _generic(fields: Entry) -> Iterator[str]:
    """What is done, to what, the other fields by name, and how it ended."""
    operation = next((name for name in OPERATIONS if name in fields), "")
    yield str(fields.get(operation, ""))
    yield from (str(fields[name]) for name in OBJECTS if name in fields)
    told = {operation, "status", "error", *OBJECTS}
    yield from (f"{name}={value}" for name, value in fields.items() if name not in told)
    ending = fields.get("status", fields.get("error", ""))
    if ending:
        yield f"=> {ending}"


_SAID: Mapping[str, Callable[[Entry], Iterator[str]]] = {"http": _http, "kafka": _kafka}


def _drop(entry: Entry, verbose: int, paint: Paint) -> str:
    head = paint(f"xx drop ({safe(entry['reason'])})", "denied")
    return (
        f"{head} flow {entry['flow']} to endpoint {entry['destination']['endpoint']}, "
        f"{_packet(entry, verbose)}"
    )


def _trace(entry: Entry, verbose: int, paint: Paint) -> str:
    arrow = "->" if entry["direction"] == "ingress" else "<-"
    by = f"proxy port {entry['proxy_port']} " if entry["proxy_port"] else ""
    audit = "audit " if entry["audit"] else ""
    return (
        f"{arrow} endpoint {entry['endpoint']} flow {entry['flow']} state "
        f"{safe(entry['state'])} {by}{audit}ifindex {entry['ifindex']}, {_packet(entry, verbose)}"
    )


def _verdict(entry: Entry, verbose: int, paint: Paint) -> str:
    remote = entry["source" if entry["direction"] == "ingress" else "destination"]
    action = safe(entry["action"])
    by = f" to proxy port {entry['proxy_port']}" if entry["proxy_port"] else ""
    return (
        f"Policy verdict log: flow {entry['flow']} local EP ID {entry['endpoint']}, "
        f"remote ID {remote['identity']}, proto {entry['protocol']}, {entry['direction']}, "
        f"action {paint(action, _ACTIONS.get(action, 'dim'))}{by}, {_packet(entry, verbose)}"
    )


def _packet(entry: Entry, verbose: int) -> str:
    """``identity 5371->34796: 10.0.0.1:4242 -> 10.0.0.2:80 tcp SYN``."""
    ends = ""
    if verbose:
        ends = f", from {_end(entry['source'], verbose)} to {_end(entry['destination'], verbose)}"
    return f"{_identities(entry)}{ends}: {safe(entry['summary'])}"


def _lost(entry: Entry, verbose: int, paint: Paint) -> str:
    where = {
        "monitor": "this monitor was too slow for them",
        "proxy": "the proxy could not hand them to the agent in time",
        "events": "the ring buffer of the eBPF programs was full",
    }.get(str(entry.get("from")), safe(str(entry.get("from"))))
    return paint(f"-- {int(entry['count'])} entries were lost here: {where}", "report")


def _end_of_stream(entry: Entry, verbose: int, paint: Paint) -> str:
    reason = safe(str(entry.get("reason", "")))
    return paint(f"-- the stream ends: {reason}; going on with the next agent", "report")


_WRITERS: Mapping[str, Callable[[Entry, int, Paint], str]] = {
    "l7": _l7,
    "drop": _drop,
    "trace": _trace,
    "policy-verdict": _verdict,
    "lost": _lost,
    "end": _end_of_stream,
}


def _end(end: Entry, verbose: int) -> str:
    """``931 ([k8s:app=nginx])``."""
    labels = f" ([{' '.join(map(safe, end['labels']))}])" if verbose else ""
    return f"{end['endpoint']}{labels}"


def _identities(entry: Entry) -> str:
    return f"identity {entry['source']['identity']}->{entry['destination']['identity']}"
