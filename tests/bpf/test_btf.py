from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from bpf.btf import KERNEL, Btf
from bpf.errors import BpfError


@pytest.fixture(scope="module")
def kernel() -> Btf:
    if not KERNEL.exists():
        pytest.skip("this kernel has no BTF")
    return Btf()


def test_members_of_a_structure_that_user_space_knows(kernel: Btf) -> None:
    """struct iovec and struct msghdr are the same for both."""

    class Timespec(ctypes.Structure):
        _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))

    assert kernel.offset("iovec", "iov_len") == 8
    assert kernel.offset("__kernel_timespec", "tv_nsec") == Timespec.tv_nsec.offset


def test_members_of_members_and_of_nameless_ones(kernel: Btf) -> None:
    inner = kernel.offset("sock_common", "skc_net.net")
    assert kernel.offset("sock", "__sk_common.skc_net.net") == inner
    # A union without a name around struct sock_common's addresses.
    assert kernel.offset("sock_common", "skc_rcv_saddr") == 4
    assert kernel.offset("tcp_sock", "inet_conn.icsk_inet.sk") == 0


def test_what_there_is_not(kernel: Btf) -> None:
    for structure, path in (("no_such", "a"), ("sock", "no_such"), ("sock", "sk_net.no_such")):
        with pytest.raises(BpfError, match="no member"):
            kernel.offset(structure, path)
    with pytest.raises(BpfError, match="bpf_iter_nothing"):
        kernel.function("bpf_iter_nothing")
    assert kernel.function("bpf_iter_tcp") > 0


@pytest.mark.parametrize("content", [b"", b"\x9f\xeb", struct.pack("=HBBIIIII", 7, *[0] * 7)])
def test_a_file_that_is_no_btf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    with pytest.raises(BpfError, match="vmlinux"):
        Btf(path)


def test_a_kernel_without(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf(tmp_path / "vmlinux")
