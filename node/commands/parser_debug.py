"""``proxylib parser debug``."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import click

from node.commands.control_option import CONTROL
from node.errors import SetupError
from node.stopping import Stopped, stop_on_signals
from proxylib.errors import ProxylibError


@click.command("debug")
@CONTROL
def command(control: Path) -> None:
    """Wait for breakpoints of a parser that runs under 'proxylib run --debug'.

    Where its code says breakpoint(), you are in pdb, in the parser's call: 'p data',
    'n', 's', 'c' to go on. Ctrl-C leaves, and the parser goes on.
    """
    from proxylib.control import ask

    try:
        path = ask(control, {"command": "debug"})["path"]
    except (ProxylibError, OSError, ValueError, KeyError) as error:
        raise SetupError(f"no debugging at {control}: {error}") from error
    click.echo("waiting for a breakpoint; Ctrl-C leaves", err=True)
    with suppress(Stopped), stop_on_signals():
        while _attend(path):
            click.echo("\nthe parser goes on; waiting for the next breakpoint", err=True)


def _attend(path: str) -> bool:
    """Be the terminal of one breakpoint; false if the proxy, or our input, has ended."""
    with socket.socket(socket.AF_UNIX) as debugger:
        try:
            debugger.connect(path)
        except OSError:
            return False
        ended = threading.Event()
        threading.Thread(target=_type, args=(debugger, ended), daemon=True).start()
        while text := debugger.recv(1 << 16):
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        return not ended.is_set()


def _type(debugger: socket.socket, ended: threading.Event) -> None:
    with suppress(OSError):
        for line in sys.stdin:
            debugger.sendall(line.encode())
        ended.set()
        debugger.shutdown(socket.SHUT_WR)
