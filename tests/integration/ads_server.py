"""A control server as a process of its own, to be killed: policies and one redirect.

    python -m tests.integration.ads_server FOLDER

FOLDER has policy.yaml, endpoints.yaml and redirects.json; it watches the documents,
and prints "ready" when it serves.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from xds.ads.clusters import Upstream
from xds.ads.resources import Direction, NodeConfig, Redirect, build
from xds.control import ControlServer


def main(folder: Path) -> None:
    wanted = json.loads((folder / "redirects.json").read_text())
    node = NodeConfig(
        folder / "xds.sock", folder / "log.sock", "node", hosts=("127.0.0.1",), transparency=None
    )
    redirects = [
        Redirect(item["parser"], Direction(item["direction"]), item["port"], upstream="servers")
        for item in wanted["redirects"]
    ]
    upstream = Upstream("servers", tuple(map(tuple, wanted["servers"])))
    control = ControlServer(
        node.xds_path, [folder / "policy.yaml"], folder / "endpoints.yaml", watch_files=True
    )
    control.server.publish(build(node, redirects, [upstream]))
    with control:
        print("ready", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
