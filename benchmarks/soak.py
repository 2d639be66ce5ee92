"""`python -m benchmarks.soak` (make soak): does anything stay behind?

Opens and closes connections through a stock Envoy, a request on each, some of them
with a parser that panics. The memory of the Envoy process must be flat after a
warm-up, its pid the same, and every good request answered.
"""

from __future__ import annotations

import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.tools import (
    CLIENT,
    compile_tool,
    control_server,
    envoy,
    process,
    responder,
    rss_kib,
)
from proxylib.registry import load_parser_file

PARSER = Path(__file__).with_name("soak_parser.py")
REPLY = b"OK\r\n"
SAMPLES = 10
ALLOWED_KIB = 4096
"""Growth between the first sample after the warm-up and the last, KiB: what an allocator
moves about in a process that serves nothing else."""


def exchange(port: int, request: bytes) -> bytes:
    """One connection: a request, the reply (b"" if it was closed instead)."""
    with socket.create_connection((CLIENT, port), timeout=10) as connection:
        connection.sendall(request)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


def soak(folder: Path, connections: int, panics: int) -> list[int]:
    """The resident memory, KiB, after each tenth of the traffic; the first is the warm-up's."""
    load_parser_file(PARSER)
    with ExitStack() as stack:
        tool = compile_tool("load", folder)
        enter = stack.enter_context
        upstream = enter(responder(tool, folder, REPLY))
        xds = enter(control_server(folder, "soak", [{"line": "^GOOD$"}]))
        sock = folder / "log.sock"
        enter(process(tool, "consumer", sock, log=folder / "c.log"))
        config = {
            "parser": "soak",
            "parser_modules": [str(PARSER)],
            "xds_path": str(xds),
            "access_log_path": str(sock),
            "breaker_panics": panics + 1,
        }
        pid, port = enter(envoy(folder, "soak", upstream, config))
        samples = []
        step, every = connections // SAMPLES, max(1, connections // max(panics, 1))
        for count in range(connections):
            if exchange(port, b"GOOD\r\n") != REPLY:
                raise SystemExit(f"connection {count}: no answer to a good request")
            if count % every == 0 and exchange(port, b"GOOD\r\nPANIC\r\n") not in (b"", REPLY):
                raise SystemExit(f"connection {count}: a panic was answered")
            if (count + 1) % step == 0:
                samples.append(rss_kib(pid))
                click.echo(f"{count + 1:>8} connections  {samples[-1]:>8} KiB resident")
        return samples


@click.command()
@click.option("--connections", default=100_000, show_default=True)
@click.option("--panics", default=1_000, show_default=True)
def main(connections: int, panics: int) -> None:
    """Open and close connections, panic now and then, and watch Envoy's memory."""
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        samples = soak(Path(name), connections, panics)
    growth = samples[-1] - samples[0]
    click.echo(f"growth after the first tenth: {growth} KiB ({100 * growth / samples[0]:.1f} %)")
    if growth > ALLOWED_KIB:
        raise SystemExit(f"more than {ALLOWED_KIB} KiB")


if __name__ == "__main__":
    main()
