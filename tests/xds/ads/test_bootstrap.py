"""The bootstrap that a node's Envoy starts with, as a function and as a document to read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

from tests.xds.ads.judge import refused
from xds.ads.bootstrap import NodeBootstrap, build

ROOT = Path(__file__).parents[3]
RUN = Path("/run/proxylib")
CONFIG = NodeBootstrap("node", RUN / "xds.sock", RUN / "admin.sock")


@pytest.mark.parametrize(("incremental", "max_heap"), [(False, 0), (True, 0), (True, 1 << 30)])
def test_envoy_takes_it(tmp_path: Path, incremental: bool, max_heap: int) -> None:
    paths = (tmp_path / "x.sock", tmp_path / "a.sock")
    config = NodeBootstrap("n", *paths, incremental, max_heap=max_heap)
    assert refused(build(config).to_dict(), tmp_path) == ""


def test_the_document_to_read_says_the_same() -> None:
    # YAML 1.1, as Envoy reads it: 0600 is octal.
    document = yaml.safe_load((ROOT / "envoy_configs/node.yaml").read_text())
    assert Bootstrap.from_dict(document).to_dict() == build(CONFIG).to_dict()
