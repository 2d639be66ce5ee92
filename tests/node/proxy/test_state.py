"""State files that are not what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.errors import SetupError, UsageError
from node.proxy import state
from node.proxy.places import Places
from node.proxy.state import Fingerprint, Generation, Role

GENERATION = Generation(
    1, 1, 7, 0, Role.SERVING, 1.5, release="1.40", fingerprint=Fingerprint("a", "b", "c")
)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, Path("/run/x"))


def changed(**values: Any) -> dict[str, Any]:
    """What `write` would write, with other values in its one generation."""
    return {"generations": [json.loads(json.dumps(GENERATION_JSON | values))]}


GENERATION_JSON: dict[str, Any] = {
    "pid": 1,
    "started": 1,
    "base": 7,
    "epoch": 0,
    "role": "serving",
    "since": 1.5,
    "ends": 0.0,
    "release": "",
    "fingerprint": {"binary": "", "module": "", "bootstrap": ""},
}


@pytest.mark.parametrize(
    "value",
    [
        {"generations": None},
        {"generations": [[]]},
        {"generations": "x"},
        changed(pid="1"),
        changed(pid=-1),
        changed(pid=True),
        changed(epoch=1.5),
        changed(role="king"),
        changed(since="never"),
        changed(fingerprint=None),
        changed(fingerprint={"binary": ""} | {"another": ""}),
        changed(more=1),
        {"format": "1"},
    ],
    ids=str,
)
def test_a_bad_value_is_said_and_nothing_is_signalled(
    places: Places, value: dict[str, Any]
) -> None:
    state.write(places.state, [])
    whole = json.loads(places.state.read_text()) | value
    places.state.write_text(json.dumps(whole))
    left = state.left(places)
    assert str(places.state) in left.problem
    assert "the processes are looked for" in left.problem
    assert (left.running, left.gone) == ([], [])


def test_what_ran_before_a_reboot_does_not_run(places: Places) -> None:
    state.write(places.state, [GENERATION])
    assert state.left(places).gone == [GENERATION], "process 1 is no Envoy"
    value = json.loads(places.state.read_text()) | {"boot": "another"}
    places.state.write_text(json.dumps(value))
    left = state.left(places)
    assert (left.running, left.gone, left.problem) == ([], [], "")


def test_a_disk_that_does_not_take_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"nowhere/state\.json: cannot be written: No such file"):
        state.write(tmp_path / "nowhere" / "state.json", [])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_sockets_with_too_long_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bytes too long for sockets in it"):
        Places(tmp_path, tmp_path / ("x" * 100))
