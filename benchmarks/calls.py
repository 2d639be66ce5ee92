"""What a call through the C ABI costs: nanoseconds per OnData, one message each.

The host is a C program, with policy over NPDS and an access log with a consumer.
"fresh" messages carry a new key each time, so that no answer can be remembered.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tools import PORT, SERVER, compile_tool, control_server, process
from proxylib.native import library_path

CASES: list[tuple[str, str, list[dict[str, str]], bytes, bytes, str]] = [
    ("pass everything", "test.passer", [], b"x\r\n", b"", "Go 92"),
    (
        "r2d2 READ",
        "r2d2",
        [{"cmd": "READ", "file": "^plans/[a-z]+$"}],
        b"READ plans/deathstar\r\n",
        b"OK\r\n",
        "<= 3000 (Go 4442)",
    ),
    (
        "r2d2 READ, fresh",
        "r2d2",
        [{"cmd": "READ", "file": "^plans/[0-9]+$"}],
        b"READ plans/########\r\n",
        b"OK\r\n",
        "<= 3000 (Go 4442)",
    ),
    (
        "memcache get",
        "memcache",
        [{"command": "get", "keyRegex": "^fleet/[a-z]+$"}],
        b"get fleet/tie\r\n",
        b"VALUE fleet/tie 0 10\r\n0123456789\r\nEND\r\n",
        "<= 3000 (Go 5359)",
    ),
    (
        "memcache get, fresh",
        "memcache",
        [{"command": "get", "keyRegex": "^fleet/[0-9]+$"}],
        b"get fleet/########\r\n",
        b"END\r\n",
        "<= 3000 (Go 5359)",
    ),
]


@dataclass(frozen=True)
class Row:
    """Nanoseconds per OnData of a request, and of its reply (0: none)."""

    name: str
    request_ns: float
    reply_ns: float
    reach: str


def measure(folder: Path, calls: int) -> list[Row]:
    """The median of five rounds of `calls` for each case."""
    tool, load = compile_tool("cabi", folder), compile_tool("load", folder)
    rows = []
    for index, (name, parser, rules, request, reply, reach) in enumerate(CASES):
        case = folder / str(index)
        case.mkdir()
        with ExitStack() as stack:
            xds = stack.enter_context(control_server(case, parser, rules))
            sock = case / "log.sock"
            stack.enter_context(process(load, "consumer", sock, log=case / "c.log"))
            done = subprocess.run(
                [
                    tool,
                    library_path(),
                    xds,
                    sock,
                    parser,
                    SERVER,
                    f"{SERVER}:{PORT}",
                    str(calls),
                    reply,
                ],
                input=request,
                capture_output=True,
                check=False,
                timeout=120,
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr.decode()}")
            result = json.loads(done.stdout)
            rows.append(Row(name, result["request"], result["reply"], reach))
    return rows


def show(rows: list[Row]) -> str:
    lines = ["C ABI, one message per call   request ns  reply ns   reach"]
    lines += [
        f"{row.name:<28} {row.request_ns:>11.0f} {row.reply_ns:>9.0f}   {row.reach}" for row in rows
    ]
    return "\n".join(lines)
