"""An agent's part that keeps an Envoy, as a process of its own, to be killed.

    python -m tests.node.proxy.agent FOLDER XDS

Prints the process of the Envoy when it serves; starts a hot restart for each line that
it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

from node.proxy.plan import ProxyConfig
from node.proxy.supervisor import Proxy
from xds.ads.bootstrap import NodeBootstrap


def main(folder: Path, xds: Path) -> None:
    config = ProxyConfig(
        folder / "state",
        folder / "run",
        NodeBootstrap("node", xds, Path("unused")),
        drain_time=1,
        parent_shutdown_time=2,
    )
    proxy = Proxy(config)
    print(proxy.start().pid, flush=True)
    for _ in sys.stdin:
        proxy.reload()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
