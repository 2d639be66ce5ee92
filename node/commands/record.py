"""``proxylib record``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.commands import run
from node.errors import UsageError
from proxylib.tap import MAX_CONNECTION, MAX_CONNECTIONS


def _record(
    to: Path, limit: int, connections: int, redact: tuple[str, ...], **options: Any
) -> None:
    from node.bootstrap import RecordConfig

    try:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--to {to}: {error.strerror}") from None
    callback = run.command.callback
    assert callback is not None
    callback(**options, record=RecordConfig(to.absolute(), limit, connections, redact))


command = click.Command(
    "record",
    callback=_record,
    params=[
        *run.command.params,
        click.Option(
            ["--to"],
            required=True,
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            help="The folder of the recordings, a file for each connection.",
        ),
        click.Option(
            ["--limit"],
            default=MAX_CONNECTION,
            show_default=True,
            metavar="BYTES",
            type=click.IntRange(1024, 64 << 20),
            help="How much of each connection is recorded.",
        ),
        click.Option(
            ["--connections"],
            default=MAX_CONNECTIONS,
            show_default=True,
            type=click.IntRange(1, 999_999),
            help="How many connections are recorded; the rest goes unrecorded.",
        ),
        click.Option(
            ["--redact"],
            multiple=True,
            metavar="REGEX",
            help="Make what this matches unreadable (a Python regular expression over the "
            "bytes of each direction); may be given several times.",
        ),
    ],
    help="""Run PARSER as 'proxylib run' does, and record what passes.

    A recording has a connection's bytes, the parser's verdicts, the log, and the
    policy that was in force; 'proxylib replay' runs it again, off line.  It is written
    when its connection ends, or has reached --limit.  Bytes are recorded as they
    passed: passwords too, unless --redact covers them. Only you can read the files.

    \b
      proxylib record memcache --listen 127.0.0.1:11212 --upstream 127.0.0.1:11211 \\
          --to recordings
      proxylib replay recordings/*.jsonl --policy new-policy.yaml --endpoints endpoints.yaml
    """,
)
