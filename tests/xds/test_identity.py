"""Identity numbers: reserved, stable, remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxylib.errors import ConfigError
from xds.identity import MAX_IDENTITY, Identities
from xds.labels import LabelSet, label_set, parse_label


def labels(*texts: str) -> LabelSet:
    return label_set(map(parse_label, texts))


A, B, C = labels("a"), labels("b"), labels("c")


def test_reserved_numbers() -> None:
    identities = Identities()
    names = ["unknown", "host", "world", "unmanaged", "health", "init", "remote-node"]
    assert [identities.number(labels(f"reserved:{name}")) for name in names] == list(range(7))


def test_sorted_order_and_stable_while_running() -> None:
    identities = Identities()
    assert identities.number_all([C, A, C]) == {256: A, 257: C}
    assert identities.number_all([B, A]) == {256: A, 258: B}
    assert identities.number(C) == 257


def test_state_file_outlives_the_server(tmp_path: Path) -> None:
    state = tmp_path / "identities.json"
    first = Identities(state)
    first.number_all([B])
    first.number_all([A])
    first.save()
    again = Identities(state)
    assert again.number_all([A, B, C]) == {256: B, 257: A, 258: C}
    again.save()
    assert Identities(state).number(C) == 258
    assert [path.name for path in tmp_path.iterdir()] == ["identities.json"]


def test_numbers_run_out(tmp_path: Path) -> None:
    state = tmp_path / "s"
    state.write_text(json.dumps({"identities": {str(A): MAX_IDENTITY}}))
    identities = Identities(state)
    assert identities.number(A) == MAX_IDENTITY
    with pytest.raises(ConfigError, match="no identity is left"):
        identities.number(B)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"identities": []}',
        '{"identities": {"a": 1}}',
        '{"identities": {"a": true}}',
        '{"identities": {"a": 16777216}}',
        '{"identities": {"a": [1]}}',
        '{"identities": {"a": 300, "b": 300}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_bad_state_is_refused(tmp_path: Path, text: str) -> None:
    state = tmp_path / "s"
    state.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not an identity state file"):
        Identities(state)


def test_state_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Identities(tmp_path)
    identities = Identities(tmp_path / "gone" / "s")
    identities.number(A)
    with pytest.raises(ConfigError, match="cannot be written"):
        identities.save()
