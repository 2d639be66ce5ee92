"""A new generation is rehearsed before it may take over.

Envoy closes its admin interface as soon as a successor asks it to, and drains when that
says it serves: a successor that cannot load the library would serve nothing.  So
the same binary checks the same bootstrap first, with a listener that has our filter.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener

from node.envoy import READY_TIMEOUT, command_line, environment
from node.errors import SetupError
from node.proxy.log import obituary
from node.proxy.plan import Plan
from proxylib.registry import parser_names
from xds.ads.bootstrap import to_json
from xds.ads.clusters import address
from xds.ads.filters import FilterConfig, tcp_chain

_CLUSTER = "rehearsal"

_LINES = 40
"""Lines of its log that are told."""


def rehearse(plan: Plan) -> None:
    """Raises SetupError, with Envoy's reasons, if `plan` would not serve."""
    with tempfile.TemporaryDirectory(prefix="proxy") as folder:
        document = Path(folder) / "bootstrap.json"
        document.write_text(to_json(_with_our_filter(plan.message(Path(folder)), Path(folder))))
        command = [*command_line(plan.binary, document), "--mode", "validate"]
        try:
            done = subprocess.run(
                [*command, "--disable-hot-restart"],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment(plan.library),
                timeout=READY_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"the new Envoy cannot be tried: {error}") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").splitlines()[-_LINES:]
            raise SetupError(obituary("the new Envoy refuses to serve", lines))


def _with_our_filter(message: Bootstrap, folder: Path) -> Bootstrap:
    static = message.static_resources or BootstrapStaticResources()
    message.static_resources = static
    for parser in parser_names()[:1]:
        nowhere = FilterConfig(parser, folder / "xds", folder / "log", "rehearsal")
        chain = tcp_chain([nowhere], _CLUSTER, stat_prefix=_CLUSTER)
        static.clusters.append(Cluster(name=_CLUSTER))
        static.listeners.append(
            Listener(
                name=_CLUSTER,
                address=address("127.0.0.1", 0),
                filter_chains=[FilterChain(filters=chain)],
            )
        )
    return message
