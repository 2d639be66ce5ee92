"""``proxylib replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.errors import UsageError
from node.parsers import choose_parser
from proxylib.errors import ProxylibError

if TYPE_CHECKING:
    from node.kit.replay import Judges, Replay
    from proxylib.recording import Recording

_FILE = click.Path(exists=True, path_type=Path)


@click.command("replay")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--parser", metavar="PARSER", help="Judge by this parser, not by the recorded one.")
@click.option("--policy", "policies", multiple=True, type=_FILE, metavar="FILE")
@click.option("--endpoints", type=_FILE, metavar="FILE", help="Who has which labels now.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of a capture: only this server port.")
@click.option("--quiet", is_flag=True, help="Only the sum, not each difference.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each connection.")
def command(
    files: tuple[Path, ...],
    parser: str | None,
    policies: tuple[Path, ...],
    endpoints: Path | None,
    port: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run recordings, or captures (pcap, pcapng), against today's code and policy.

    Shows where the log now differs from what was recorded: "-" then, "+" now. With
    --policy: what these documents would have denied. Without: what changed in the
    parser. Captures need --parser and --policy; all that they judge is shown as new.

    Exit status: 0 nothing differs, 1 something does.
    """
    from node.kit.replay import judges, replay, totals

    name = choose_parser(parser).name if parser else ""
    recordings = [(path, item) for path in files for item in _read(path, name, port)]
    judge: Judges | None = None
    if policies:
        names = {recording.facts.policy_name for _, recording in recordings}
        judge = judges(policies, endpoints, names)
    runs: list[Replay] = []
    for path, recording in recordings:
        try:
            run = replay(recording, parser=name, judge=judge)
        except LookupError as error:
            raise UsageError(f"{path}: {error}; name its file with --parser") from error
        except ProxylibError as error:
            raise UsageError(f"{path}: {error}") from error
        runs.append(run)
        if as_json:
            click.echo(json.dumps(_to_json(path, recording, run)))
        elif run.differs and not quiet:
            _show(path, recording, run)
    differing = sum(run.differs for run in runs)
    if not as_json:
        click.echo(f"{len(runs)} connections, {differing} differ", nl=False)
        counts = sorted(totals(runs).items())
        click.echo("".join(f"; {count} {what}" for what, count in counts))
    raise SystemExit(1 if differing else 0)


def _read(path: Path, parser: str, port: int | None) -> list[Recording]:
    from node.kit.capture import is_capture, read_capture
    from node.kit.replay import read_recording

    if not is_capture(path):
        return [read_recording(path)]
    if not parser:
        raise UsageError(f"{path} is a capture: say with --parser what it is of")
    return read_capture(path, parser, port)


def _show(path: Path, recording: Recording, run: Replay) -> None:
    facts = recording.facts
    click.echo(f"{path}: {facts.parser} {facts.src_addr} -> {facts.dst_addr}")
    for line in run.diff():
        click.echo(click.style(f"  {line}", fg="red" if line.startswith("-") else "green"))


def _to_json(path: Path, recording: Recording, run: Replay) -> dict[str, object]:
    facts = recording.facts
    return {
        "file": str(path),
        "parser": facts.parser,
        "source": facts.src_addr,
        "destination": facts.dst_addr,
        "differs": run.differs,
        "then": run.then,
        "now": run.now,
        "closed": run.closed,
    }
