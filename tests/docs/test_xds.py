"""The control server of docs/xds.md, word for word but for its paths, with node.yaml's Envoy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from demos.stage import line_server
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy
from tests.integration.test_ads import HOST, PATIENCE, refuses, set_policy, verdict
from tests.integration.waiting import until
from xds import server, subscription
from xds.ads import ports

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/xds.md").read_text()


def test_the_control_server_and_its_envoy() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with (
        TemporaryDirectory(prefix="xds") as name,
        line_server(Address(HOST, 0), lambda line: line) as droid,
    ):
        folder = Path(name)
        set_policy(folder, droid, "HALT")
        program = program.replace("/run/proxylib", name).replace("4040", str(droid.port))
        document = folder / "node.yaml"
        text = (ROOT / "envoy_configs/node.yaml").read_text()
        document.write_text(text.replace("/run/proxylib", name))
        with subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        ) as control:
            try:
                assert control.stdout is not None
                printed = control.stdout.readline()
                ((redirect, port),) = ast.literal_eval(printed).items()
                assert f"`{{'{redirect}': 10000}}`" in PAGE
                assert ports.FIRST <= port <= ports.LAST
                until((folder / "xds.sock").exists, PATIENCE)
                with EnvoyProcess(find_envoy(), document, folder / "admin.sock") as envoy:
                    envoy.wait_ready()
                    until(lambda: not refuses(port), PATIENCE)
                    until(lambda: verdict(port, b"HALT") == b"HALT", PATIENCE)
                    assert verdict(port, b"RESET") == b"ERROR"
            finally:
                control.kill()


def test_the_numbers_of_the_page() -> None:
    said = " ".join(PAGE.split())
    for words in (
        f"{ports.FIRST} to {ports.LAST}",
        f"no more than {subscription.MAX_OUTSTANDING} responses per type",
        f"line in the log after {server.ANSWER_TIMEOUT:g} s",
        f"more than {server.REQUESTS_PER_SECOND:g} requests in a second",
        f"at most {server.MAX_STREAMS} streams",
        f"requests have {server.MAX_REQUEST >> 20} MiB at most",
    ):
        assert words in said, words
    assert ports.RELEASE_DELAY == 5 * 60
