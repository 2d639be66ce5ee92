"""The agent as a service: its unit, and what systemd is told while it runs (notify.py)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template


def unit(executable: Path) -> str:
    """The unit of an agent that is started by `executable`, the command ``proxylib``."""
    text = files(__name__).joinpath("proxylib.service.in").read_text("utf-8")
    return Template(text).substitute(proxylib=_quoted(str(executable)))


def _quoted(path: str) -> str:
    """The program of a command line as systemd.service(5) reads it: % is a specifier's."""
    return '"{}"'.format(path.replace("%", "%%"))
