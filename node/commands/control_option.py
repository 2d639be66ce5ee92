"""The option that names a running proxy: its control socket."""

from __future__ import annotations

from pathlib import Path

import click

CONTROL = click.option(
    "--control",
    envvar="PROXYLIB_CONTROL",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The proxy's control socket ('proxylib run --control PATH').  [env: PROXYLIB_CONTROL]",
)
