"""Secrets from a folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxylib import http_secrets
from proxylib.http_secrets import NO_SECRETS, Secrets, is_secret_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default").mkdir()
    return tmp_path


def test_a_file_or_the_only_file_of_a_folder(folder: Path) -> None:
    (folder / "default" / "one").write_bytes(b"s3cret\n")
    (folder / "default" / "two").mkdir()
    (folder / "default" / "two" / "token").write_bytes(b"a b")
    secrets = Secrets(folder)
    assert secrets.value("default/one") == b"s3cret"
    assert secrets.value("default/two") == b"a b"
    assert secrets.value("default/none") is None
    assert NO_SECRETS.value("default/one") is None


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b" a", b"a\0b", b"x" * 8193])
def test_what_no_header_can_have_is_no_secret(folder: Path, content: bytes) -> None:
    (folder / "default" / "odd").write_bytes(content)
    assert Secrets(folder).value("default/odd") is None


def test_of_several_files_none_is_the_secret(folder: Path) -> None:
    (folder / "default" / "two").mkdir()
    for name in ("a", "b"):
        (folder / "default" / "two" / name).write_bytes(b"x")
    assert Secrets(folder).value("default/two") is None


def test_a_changed_file_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_secrets, "RECHECK_NS", 0)
    path = folder / "default" / "one"
    secrets = Secrets(folder)
    assert secrets.value("default/one") is None
    path.write_bytes(b"1")
    assert secrets.value("default/one") == b"1"
    path.write_bytes(b"2")
    assert secrets.value("default/one") == b"2"
    path.unlink()
    assert secrets.value("default/one") is None


def test_names_cannot_lead_out_of_the_folder(folder: Path) -> None:
    (folder / "outside").write_bytes(b"x")
    for name in (
        "../outside",
        "default/../outside",
        "default/..",
        "/etc/passwd",
        "outside",
        "a/b/c",
    ):
        assert not is_secret_name(name)
        assert Secrets(folder / "default").value(name) is None
    assert is_secret_name("kube-system/gmem-tls.data_1")
