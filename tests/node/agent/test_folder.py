"""The watched policy directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.errors import UsageError
from tests.native.services import wait_for
from tests.node.agents import Agent, r2d2, running


def names(agent: Agent) -> list[str]:
    return [policy["name"] for policy in agent.get("/policy")["policies"]]


def drop(folder: Path, name: str, text: str) -> None:
    """As an editor does: written elsewhere, and moved into place."""
    (folder / f".{name}.new").write_text(text)
    (folder / f".{name}.new").rename(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policies"
    path.mkdir()
    return path


def test_files_come_and_go(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        assert names(agent) == ["one"]
        (policy,) = agent.get("/policy")["policies"]
        assert (policy["source"], policy["file"]) == ("file", str(folder / "one.yaml"))
        drop(folder, "two.yaml", r2d2("two"))
        wait_for(lambda: names(agent) == ["one", "two"], "the second file")
        (folder / "one.yaml").unlink()
        wait_for(lambda: names(agent) == ["two"], "the first one to go")


def test_a_bad_edit_leaves_what_was_there(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        drop(folder, "one.yaml", r2d2("one", cmd="JUMP"))
        drop(folder, "two.yaml", r2d2("two"))
        wait_for(lambda: agent.get("/policy")["problems"], "the error to be reported")
        wait_for(lambda: names(agent) == ["one", "two"], "the good file")
        (problem,) = agent.get("/policy")["problems"]
        assert problem["file"] == str(folder / "one.yaml")
        assert problem["line"] == 11
        health = {c["name"]: c for c in agent.get("/healthz")["components"]}
        assert health["Policy directory"]["state"] == "Warning"
        listed = agent.cli("policy", "get")
        assert "not in force:" in listed.stderr
        documents = agent.get("/policy", name="one")["policies"]
        assert "READ" in str(documents)
    # Over a restart too.
    with running(short_path, policy_dir=folder) as agent:
        assert names(agent) == ["one", "two"]
        assert agent.get("/policy")["problems"][0]["line"] == 11
        drop(folder, "one.yaml", r2d2("one", cmd="HALT"))
        wait_for(lambda: "HALT" in str(agent.get("/policy")), "the mended file")
        wait_for(lambda: not agent.get("/policy")["problems"], "no problem")


def test_an_emptied_file_opens_nothing(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        drop(folder, "one.yaml", "")
        wait_for(lambda: agent.get("/policy")["problems"], "the error to be reported")
        assert names(agent) == ["one"]


def test_a_name_belongs_to_file_or_api(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        refused = agent.put_policy(r2d2("one"))
        assert refused.status_code == 422
        assert "change it there" in refused.json()["detail"]
        deleted = agent.http.delete("/policy/one")
        assert deleted.status_code == 409
        assert str(folder / "one.yaml") in deleted.json()["detail"]
        agent.put_policy(r2d2("two"))
        drop(folder, "two.yaml", r2d2("two"))
        wait_for(lambda: agent.get("/policy")["problems"], "the conflict to be reported")
        # What stood in its way has gone: the file is taken up without being touched.
        agent.http.delete("/policy/two")
        wait_for(lambda: names(agent) == ["one", "two"], "the file to be taken up", 30)
        assert agent.get("/policy")["problems"] == []


def test_a_file_that_is_renamed_is_in_force_all_the_time(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        before = agent.get("/policy")["revision"]
        (folder / "one.yaml").rename(folder / "two.yaml")
        new = str(folder / "two.yaml")
        wait_for(lambda: agent.get("/policy")["policies"][0]["file"] == new, "the new name")
        assert agent.get("/policy")["revision"] == before + 1
        assert agent.get("/policy")["problems"] == []


def test_one_name_in_two_files(short_path: Path, folder: Path) -> None:
    drop(folder, "a.yaml", r2d2("one"))
    drop(folder, "b.yaml", r2d2("one", cmd="HALT"))
    with running(short_path, policy_dir=folder) as agent:
        assert names(agent) == ["one"]
        (problem,) = agent.get("/policy")["problems"]
        assert problem["file"] == str(folder / "b.yaml")
        assert f"comes from {folder / 'a.yaml'}" in problem["message"]


def test_other_files_are_left_alone(short_path: Path, folder: Path) -> None:
    (folder / ".hidden.yaml").write_text("nonsense: [")
    (folder / "README.md").write_text("nonsense: [")
    (folder / "sub").mkdir()
    (folder / "sub" / "a.yaml").write_text("nonsense: [")
    with running(short_path, policy_dir=folder) as agent:
        assert agent.get("/policy") == {"revision": 0, "policies": [], "problems": []}


def test_files_that_cannot_be_read_have_not_gone(short_path: Path, folder: Path) -> None:
    drop(folder, "one.yaml", r2d2("one"))
    with running(short_path, policy_dir=folder) as agent:
        (folder / "one.yaml").unlink()
        os.mkfifo(folder / "one.yaml")
        wait_for(lambda: agent.get("/policy")["problems"], "the error to be reported")
        assert names(agent) == ["one"]
        folder.rename(folder.with_name("elsewhere"))
        wait_for(
            lambda: any("cannot be read" in p["message"] for p in agent.get("/policy")["problems"]),
            "the directory to be missed",
            30,
        )
        assert names(agent) == ["one"]


def test_no_such_directory(short_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="not a directory"),
        running(short_path, policy_dir=short_path / "none"),
    ):
        pass


def test_without_the_directory_its_files_stay_and_can_be_deleted(
    short_path: Path, folder: Path
) -> None:
    drop(folder, "one.yaml", r2d2("one") + "---\n" + r2d2("other"))
    drop(folder, "two.yaml", r2d2("two"))
    drop(folder, "three.yaml", r2d2("three"))
    with running(short_path, policy_dir=folder) as agent:
        assert agent.cli("policy", "delete", "one").exit_code == 2
        agent.put_policy(r2d2("by-api"))
        # All that came by the API; files are not the API's.
        assert agent.cli("policy", "delete", "--all").exit_code == 0
        assert names(agent) == ["one", "other", "three", "two"]
    with running(short_path) as agent:
        assert names(agent) == ["one", "other", "three", "two"]
        health = {c["name"]: c for c in agent.get("/healthz")["components"]}
        assert health["Policy directory"]["state"] == "Warning"
        assert health["Policy directory"]["message"].startswith("none; 3 files of an earlier one")
        assert agent.cli("policy", "delete", "one").exit_code == 0
        assert agent.put_policy(r2d2("two", cmd="HALT")).status_code == 200
    with running(short_path) as agent:
        found = {p["name"]: p for p in agent.get("/policy")["policies"]}
        assert {name: p["source"] for name, p in found.items()} == {
            "other": "api",
            "three": "file",
            "two": "api",
        }
        assert "HALT" in str(found["two"]["document"])
        assert agent.cli("policy", "delete", "--all").exit_code == 0
        assert names(agent) == []
        health = {c["name"]: c for c in agent.get("/healthz")["components"]}
        assert health["Policy directory"]["state"] == "Disabled"
