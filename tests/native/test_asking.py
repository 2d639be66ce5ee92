"""A parser that asks, in a host that cannot be called back: the call takes until the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylib import FilterResult
from tests.native.chost import Rig
from tests.native.installed import install
from tests.native.services import network_policy


@pytest.fixture(scope="module")
def rig(host_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("asking")
    rig = Rig(host_program, directory / "rig", library=install(directory / "prefix"))
    yield rig
    rig.close()


def test_the_call_takes_until_the_answer(rig: Rig) -> None:
    number, endpoint = rig.endpoint()
    rig.set_policy(endpoint, network_policy(endpoint, "asker", None))
    where = {"policy_name": endpoint, "dst_addr": f"{endpoint}:80"}
    assert rig.process.new_connection(rig.instance, number, "asker", **where) == FilterResult.OK
    assert rig.process.io(number, False, False, b"yes\nno\nyes\nha").out[0] == b"yes\nyes\n"
    event = rig.process.io(number, False, True, b"lf\n")
    assert event.out[0] == b"half\n"
    assert [entry.entry_type for entry in rig.entries(endpoint)] == [0, 2, 0, 0]
