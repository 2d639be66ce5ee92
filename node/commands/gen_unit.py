"""``proxylib gen-unit``."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("gen-unit")
def command() -> None:
    """Print a systemd unit that runs the agent of this installation.

    \b
      proxylib gen-unit > /etc/systemd/system/proxylib.service
      systemctl enable --now proxylib

    Restarting it, or its end, leaves what is in force in force.
    """
    from node.systemd import unit

    click.echo(unit(Path(sys.executable).with_name("proxylib")), nl=False)
