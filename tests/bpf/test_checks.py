from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import checks, compiler, headers, syscall
from bpf.errors import BpfError


def test_this_machine_has_it_all(bpffs: Path) -> None:
    found = checks.all_checks(bpffs / "p")
    assert [check for check in found if not check.ok] == []
    assert [check for check in found if check.hint] == []
    assert len({check.what for check in found}) == 8
    checks.require(bpffs / "p")


def test_what_is_missing_is_said_at_once(
    bpffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "BCC_FOLDERS", ())
    monkeypatch.setattr(headers, "INCLUDE", tmp_path)
    with pytest.raises(BpfError) as caught:
        checks.require(bpffs / "p")
    text = str(caught.value)
    assert "install the package python3-bpfcc (never the one named bcc on PyPI)" in text
    assert "install the package linux-libc-dev" in text


def test_a_folder_that_is_no_bpffs(tmp_path: Path, privileged: None) -> None:
    with pytest.raises(BpfError, match=r"is not on a bpffs: mount -t bpf bpf"):
        checks.require(tmp_path)


def test_a_kernel_without_them(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = syscall.bpf

    def old_kernel(command: int, attributes: bytes | bytearray) -> int:
        if command == syscall.MAP_CREATE and attributes[0] == checks.MapType.RINGBUF:
            raise OSError(22, "Invalid argument")
        return real(command, attributes)

    monkeypatch.setattr(syscall, "bpf", old_kernel)
    monkeypatch.setattr(checks, "_HELPERS", {9999: "sk_assign"})
    with pytest.raises(BpfError) as caught:
        checks.require(bpffs)
    assert "refuses ringbuf (Invalid argument): Linux 5.8" in str(caught.value)
    assert "has no sk_assign: Linux 5.8" in str(caught.value)


def test_helpers_are_told_apart(privileged: None) -> None:
    assert all(map(checks._has_helper, checks._HELPERS))
    assert not checks._has_helper(9999)


def test_bpffs_is_mounted_where_it_belongs(tmp_path: Path, privileged: None) -> None:
    """In a mount namespace of its own, without the one that may be there."""
    script = (
        "from bpf import checks; root = checks.BPFFS / 'p'\n"
        "assert checks.filesystem(root) != checks.BPFFS_MAGIC\n"
        "checks.mount_bpffs(root); checks.mount_bpffs(root)\n"
        "assert checks.filesystem(root) == checks.BPFFS_MAGIC\n"
        "root.mkdir()\n"
    )
    shell = '! grep -q " /sys/fs/bpf " /proc/mounts || umount -l /sys/fs/bpf; exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", shell]
    subprocess.run([*command, sys.executable, script], check=True)


def test_without_rights(bpffs: Path) -> None:
    """As an ordinary user: what to do, and no stack trace."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            found = checks.all_checks(bpffs)
            rights = found[0]
            if not rights.ok and "run it as root" in rights.hint and len(found) == 5:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_file_systems(bpffs: Path, tmp_path: Path) -> None:
    assert checks.filesystem(bpffs / "no" / "such") == checks.BPFFS_MAGIC
    assert checks.filesystem(tmp_path) != checks.BPFFS_MAGIC
    found = checks.cgroup2()
    assert found is not None
    assert (found / "cgroup.controllers").exists()
    assert ctypes.sizeof(ctypes.c_long) == 8
