"""Which namespace is meant: names, paths, processes, and numbers that are given again."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from demos.namespaces import Lab
from node.links.namespaces import (
    LinkError,
    all_paths,
    cookie,
    inside,
    open_namespace,
    path_of,
    path_of_process,
)
from tests.conftest import MakeLab


@pytest.mark.parametrize(
    "netns", ["", ".", "..", "red\x1b[31m", "a\nb", "x" * 5000, "../etc/passwd", "a/b"]
)
def test_odd_names(netns: str) -> None:
    with pytest.raises(LinkError) as error:
        path_of(netns)
    assert str(error.value).isprintable()


def test_names_and_paths() -> None:
    assert path_of("blue") == "/run/netns/blue"
    assert path_of("/proc/1/ns/net") == "/proc/1/ns/net"


def test_what_is_no_namespace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "file", "is no network namespace"),
        (tmp_path / "pipe", "is no network namespace"),
        (tmp_path, "is no network namespace"),
        (Path("/proc/self/ns/mnt"), "is no network namespace"),
        (tmp_path / "nothing", "there is no such network namespace"),
        (Path("/proc/999999999/ns/net"), "there is no process 999999999"),
    ):
        with pytest.raises(LinkError, match=why), open_namespace(str(path)):
            pass


def test_an_unknown_name_tells_the_known_ones(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    with (
        pytest.raises(LinkError, match="there is no network namespace 'nobody'") as error,
        open_namespace(path_of("nobody")),
    ):
        pass
    names = sorted(os.listdir("/run/netns"))
    assert lab.node.netns in names
    assert f"there are: {names[0]}" in str(error.value)


def test_inside_is_inside_and_nowhere_else(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    before = cookie()
    with open_namespace(path_of(lab["client"].netns)) as descriptor:
        there = inside(descriptor, cookie)
        with pytest.raises(ZeroDivisionError):
            inside(descriptor, lambda: 1 // 0)
    assert cookie() == before != there
    with lab["client"].entered():
        assert cookie() == there
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("netns")]


def test_cookies_are_not_given_again() -> None:
    """Inode numbers are, at once: on this the whole of recognising a namespace rests."""
    seen = set()
    for _ in range(3):
        with Lab() as lab, open_namespace(path_of(lab.node.netns)) as descriptor:
            seen.add(inside(descriptor, cookie))
    assert len(seen) == 3


def test_a_process_names_its_namespace(make_lab: MakeLab) -> None:
    lab = make_lab("client")
    named = lab["client"].popen("sleep", "60")
    assert path_of_process(named.pid) == str(lab["client"].path)
    nameless = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert nameless.stdout is not None
        nameless.stdout.readline()
        path = f"/proc/{nameless.pid}/ns/net"
        assert path_of_process(nameless.pid) == path
        here = list(all_paths())
        assert path in here
        assert str(lab["client"].path) in here
        assert f"/proc/{named.pid}/ns/net" not in here
    finally:
        nameless.kill()
        nameless.communicate()
    with pytest.raises(LinkError, match="no process"):
        path_of_process(nameless.pid)
