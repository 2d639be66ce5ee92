"""``proxylib parser profile``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from node.errors import UsageError
from node.parsers import choose_parser

_FILE = click.Path(exists=True, path_type=Path)


@click.command("profile")
@click.argument("parser")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--policy", "policies", multiple=True, type=_FILE, metavar="FILE")
@click.option("--endpoints", type=_FILE, metavar="FILE")
@click.option(
    "--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 600), help="How long."
)
@click.option(
    "--flame",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a flame graph: .html to open in a browser, .json for speedscope.",
)
def command(
    parser: str,
    file: Path,
    policies: tuple[Path, ...],
    endpoints: Path | None,
    seconds: float,
    flame: Path | None,
) -> None:
    """Show where PARSER's time goes, with the traffic of a recording (proxylib record).

    Times are of the parser, the policy and the engine's Python; Envoy's share is not
    in them, nor the C of the library.
    """
    from pyinstrument.renderers import ConsoleRenderer, HTMLRenderer, SpeedscopeRenderer

    from node.kit.profile import profile
    from node.kit.replay import judges, read_recording

    if flame is not None and flame.suffix not in (".html", ".json"):
        raise UsageError(f"--flame {flame}: its name must end in .html or .json")
    name = choose_parser(parser).name
    recording = read_recording(file)
    judge = judges(policies, endpoints, [recording.facts.policy_name]) if policies else None
    found = profile(recording, seconds, parser=name, judge=judge)
    micro = found.seconds * 1e6
    click.echo(
        f"{name}: {found.messages} messages in {found.calls} calls, {found.size} bytes\n"
        f"{micro / found.messages:.2f} us per message, {micro / found.calls:.2f} us per call, "
        f"{found.size / micro if micro else 0:.1f} bytes per us"
    )
    console = ConsoleRenderer(unicode=True, color=sys.stdout.isatty(), show_all=True)
    click.echo(console.render(found.session))
    if flame is not None:
        renderer = HTMLRenderer() if flame.suffix == ".html" else SpeedscopeRenderer(show_all=True)
        flame.write_text(renderer.render(found.session))
        click.echo(f"flame graph: {flame}")
