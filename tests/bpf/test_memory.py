from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bpf import memory
from bpf.errors import BpfError
from bpf.memory import Memory


def remembered(file: Path) -> Memory:
    kept = Memory.load(file)
    namespace = kept.namespace(7, "/proc/1/ns/net")
    namespace.sysctls["net/ipv4/ip_forward"] = "0"
    namespace.sidecars[3] = 12
    kept.save()
    return kept


def test_round_trip(tmp_path: Path) -> None:
    kept = remembered(tmp_path / "state" / "restore.json")
    assert Memory.load(kept.file) == kept
    assert [path.name for path in kept.file.parent.iterdir()] == ["restore.json"]
    kept.forget()
    assert Memory.load(kept.file).namespaces == {}
    kept.forget()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("12", '"x"'),
        lambda text: text.replace('"sysctls"', '"other"'),
    ],
)
def test_a_file_that_is_damaged(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = remembered(tmp_path / "restore.json").file
    assert callable(damage)
    file.write_text(damage(file.read_text()))
    with caplog.at_level(logging.WARNING):
        assert Memory.load(file).namespaces == {}
    assert str(file) in caplog.text


def test_a_file_of_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remembered(tmp_path / "restore.json").file
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(memory, "BOOT_ID", tmp_path / "boot")
    assert Memory.load(file).namespaces == {}


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    with pytest.raises(BpfError, match=r"restore\.json cannot be written, so nothing is changed"):
        remembered(tmp_path / "state" / "restore.json")
