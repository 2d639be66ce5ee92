from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bpf.netns import NamespaceGone, cookie, within
from tests.bpf.nodes import Namespace


def test_only_the_action_is_there(namespace: Namespace) -> None:
    here = cookie()
    assert within(namespace.path, cookie) != here
    assert cookie() == here
    assert within("", cookie) == here


def test_errors_come_back(namespace: Namespace) -> None:
    def action() -> None:
        raise KeyError(threading.current_thread().name)

    with pytest.raises(KeyError, match=namespace.name):
        within(namespace.path, action)


def test_a_namespace_that_is_gone(tmp_path: Path, privileged: None) -> None:
    with pytest.raises(NamespaceGone, match="nowhere: No such file"):
        within(str(tmp_path / "nowhere"), cookie)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo", "."):
        with pytest.raises(NamespaceGone, match="Invalid argument"):
            within(str(tmp_path / name), cookie)
