"""``proxylib policy trace``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.commands.remote import agent, remote, show_json
from node.errors import UsageError
from node.tables import mark, safe, show

if TYPE_CHECKING:
    from xds.trace_request import Request

_FILE = click.Path(path_type=Path)
_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def _end(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Option callback: an address, an identity's number, or labels."""
    if len(values) == 1:
        (text,) = values
        if text.isascii() and text.isdigit():
            return {"identity": int(text)}
        try:
            return {"address": str(ipaddress.ip_address(text))}
        except ValueError:
            pass
    return {"labels": [label for value in values for label in value.split(",") if label]}


def _port(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, str]:
    match = _PORT.fullmatch(value)
    if match is None or not 0 < int(match[1]) <= 65535:
        raise click.BadParameter(f"{value!r} is not PORT or PORT/PROTOCOL, such as 80/TCP")
    return int(match[1]), (match[2] or "TCP").upper()


@click.command("trace")
@click.option(
    "--src",
    "source",
    required=True,
    multiple=True,
    callback=_end,
    metavar="WHO",
    help="Who connects: labels (k8s:app=a,x=y), an IP address, or an identity.",
)
@click.option(
    "--dst",
    "destination",
    required=True,
    multiple=True,
    callback=_end,
    metavar="WHO",
    help="To whom.",
)
@click.option(
    "--dport",
    "port",
    required=True,
    callback=_port,
    metavar="PORT[/PROTOCOL]",
    help="The destination's port: 80, 80/TCP, 53/UDP.",
)
@click.option("--ingress", "only", flag_value="ingress", help="Only the destination's policies.")
@click.option("--egress", "only", flag_value="egress", help="Only the source's policies.")
@click.option("--l7", metavar="TEXT", help="A request, as its properties: 'cmd=READ file=x'.")
@click.option("--parser", default="", metavar="NAME", help="Whose --l7 is [default: the port's].")
@click.option("--http", metavar="TEXT", help="An HTTP request: 'GET /x'.")
@click.option("--header", "headers", multiple=True, metavar="TEXT", help="With --http: 'Host: a'.")
@click.option("--kafka", metavar="TEXT", help="A Kafka request: 'api_key=fetch topic=x'.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=_FILE,
    metavar="FILE",
    help="Off line: policies from files, not from an agent; several times.",
)
@click.option("--endpoints", type=_FILE, metavar="FILE", help="Off line: who there is.")
@click.option("--matched", is_flag=True, help="Only the rules that match.")
@remote
def command(
    source: dict[str, Any],
    destination: dict[str, Any],
    port: tuple[int, str],
    only: str | None,
    l7: str | None,
    parser: str,
    http: str | None,
    headers: tuple[str, ...],
    kafka: str | None,
    policies: tuple[Path, ...],
    endpoints: Path | None,
    matched: bool,
    socket_path: Path | None,
    as_json: bool,
) -> None:
    """Say what becomes of a connection, or of a request on it, and which rules decide.

    \b
      proxylib policy trace --src role=jedi --dst 10.0.0.1 --dport 11211/TCP \\
          --l7 'command=get key=alliance/fleet/x'

    The verdict is the data path's own; the rules are shown as the documents have them.
    With --policy (and --endpoints) no agent is asked.

    Exit status: 0 allowed, or it depends on what is said; 1 denied; 4 verdict and
    documents do not agree (please report it).
    """
    question = {
        "source": source,
        "destination": destination,
        "port": port[0],
        "protocol": port[1],
        "directions": [only] if only else ["egress", "ingress"],
    }
    request = _request(l7, parser, http, headers, kafka)
    if request is not None:
        question["request"] = {
            "parser": request.parser,
            "fields": {key: list(values) for key, values in request.fields.items()},
            "headers": [list(header) for header in request.headers],
        }
    if policies:
        answer = _offline(question, request, policies, endpoints)
    elif endpoints is not None:
        raise click.UsageError("--endpoints goes with --policy: both off line, or an agent")
    else:
        with agent(socket_path) as client:
            answer = client.call("POST", "policy", "resolve", json=question)
    if as_json:
        show_json(answer)
    else:
        show(text_of(answer, matched=matched))
    if not answer["agrees"]:
        raise SystemExit(4)
    if answer["verdict"] == "denied":
        raise SystemExit(1)


def _request(
    l7: str | None, parser: str, http: str | None, headers: tuple[str, ...], kafka: str | None
) -> Request | None:
    from xds.trace_request import parse_fields, parse_http

    if sum(text is not None for text in (l7, http, kafka)) > 1:
        raise click.UsageError("give one of --l7, --http and --kafka")
    if headers and http is None:
        raise click.UsageError("--header goes with --http")
    try:
        if http is not None:
            return parse_http(http, headers)
        if kafka is not None:
            return parse_fields(kafka, "kafka")
        return None if l7 is None else parse_fields(l7, parser)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _offline(
    question: dict[str, Any],
    request: Request | None,
    policies: tuple[Path, ...],
    endpoints: Path | None,
) -> dict[str, Any]:
    """The answer by files."""
    from dataclasses import asdict
    from functools import partial

    from xds.engine import Change, Engine
    from xds.labels import label_set, parse_label
    from xds.reading import Reader, Source
    from xds.source import read_file
    from xds.trace import End, Question, trace

    def source_of(path: Path) -> Source:
        return Source(str(path), partial(read_file, path))

    def end(given: dict[str, Any]) -> End:
        labels = given.get("labels")
        try:
            found = None if labels is None else label_set(map(parse_label, labels))
        except ValueError as error:
            raise UsageError(str(error)) from error
        return End(given.get("address", ""), given.get("identity"), found)

    files = [f for path in policies for f in ([path] if not path.is_dir() else _files(path))]
    read = Reader().read(map(source_of, files), [source_of(endpoints)] if endpoints else [])
    engine = Engine()
    engine.change(
        Change(
            policies=read.policies,
            endpoints=dict(enumerate(read.endpoints, 1)),
            services=read.services.resolve,
        )
    )
    answer = trace(
        engine,
        Question(
            source=end(question["source"]),
            destination=end(question["destination"]),
            port=question["port"],
            protocol=question["protocol"],
            ingress="ingress" in question["directions"],
            egress="egress" in question["directions"],
            request=request,
        ),
    )
    return asdict(answer)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml", ".json"))


_VERDICT = {"allowed": "allowed", "denied": "denied", "depends": "warning"}
_TOLD = {
    "allowed": "ALLOWED",
    "denied": "DENIED",
    "depends": "DEPENDS on what is said (give --l7, --http or --kafka)",
}


def text_of(answer: dict[str, Any], *, matched: bool) -> str:
    """The answer for people."""
    lines = [
        f"Tracing From: {_side(answer['source'])}",
        f"          To: {_side(answer['destination'])}",
        f"       Ports: [{answer['port']}/{answer['protocol']}]",
    ]
    if answer["request"]:
        lines.append(f"     Request: {safe(answer['request'])}")
    for direction in answer["directions"]:
        lines += ["", *_direction(direction, matched)]
    verdict = answer["verdict"]
    lines += ["", f"Final verdict: {mark(_TOLD[verdict], _VERDICT[verdict])}"]
    return "\n".join(lines)


def _side(side: dict[str, Any]) -> str:
    labels = " ".join(map(safe, side["labels"]))
    if side["hypothetical"]:
        return f"[{labels}] (nobody here has these labels)"
    known = [f"identity {side['identity']}"]
    known += [f"endpoint {side['endpoint']}"] if side["endpoint"] else []
    known += [side["address"]] if side["address"] else []
    return f"[{labels}] ({', '.join(known)})"


def _direction(direction: dict[str, Any], matched: bool) -> list[str]:
    name = direction["direction"].capitalize()
    if not direction["judged"]:
        return [f"{name}: {direction['reason']}"]
    selecting = direction["selecting"]
    lines = [
        f"{name}: {len(selecting)} policies select the "
        f"{'destination' if name == 'Ingress' else 'source'}, "
        f"{direction['not_selecting']} do not; default deny is "
        f"{'on' if direction['enforced'] else 'off'}"
    ]
    hidden = 0
    for step in direction["steps"]:
        if not step["matched"] and matched:
            hidden += 1
            continue
        effect = step["effect"] if step["effect"] != "parser" else "judge"
        sign = mark(f"{effect:5}", _EFFECTS[effect]) if step["matched"] else "-    "
        audit = " (audit)" if step["audit"] else ""
        lines.append(f"  {sign} {safe(step['policy'])}{audit}: {safe(step['reason'])}")
        lines.append(f"        {safe(step['place'])}")
    if hidden:
        lines.append(f"  {hidden} rules do not match")
    verdict = direction["verdict"]
    audit = "; it passes because of audit mode" if direction["audit"] else ""
    lines.append(
        f"{name} verdict: {mark(verdict, _VERDICT[verdict])}, {safe(direction['reason'])}{audit}"
    )
    if direction["disagreement"]:
        warning = f"THE TRACE DOES NOT AGREE WITH ITSELF: {direction['disagreement']}"
        lines.append(mark(warning, "error"))
    return lines


_EFFECTS = {"allow": "allowed", "deny": "denied", "judge": "warning"}
