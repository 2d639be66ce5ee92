"""docs/cli.md and docs/rest.md: what they have one type is typed, and prints what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.agent.config import AgentConfig, key_of
from node.api.app import MAX_BODY
from tests.docs.sessions import ROOT, play
from tests.node.agents import running


@pytest.mark.parametrize("page", ["cli.md", "rest.md"])
def test_sessions(page: str) -> None:
    blocks = play(ROOT / "docs" / page)
    assert len(blocks) >= 2
    for printed, said in blocks:
        assert printed == said


def test_every_setting_is_told() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    missing = [name for name in AgentConfig.model_fields if f"`{key_of(name)}`" not in text]
    assert not missing


def test_every_path_is_told(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "rest.md").read_text()
    with running(tmp_path) as agent:
        document = agent.http.get("http://agent/openapi.json").json()
    for path, operations in document["paths"].items():
        (line,) = [line for line in text.splitlines() if f"`{path}`" in line.split(" | ")[0]]
        for method in operations:
            assert method.upper() in line.split(" | ")[1], (path, method)
    assert f"{MAX_BODY >> 20} MiB" in text
