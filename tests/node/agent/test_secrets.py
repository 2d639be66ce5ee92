"""TLS secrets from files: which items, and what stays when these are no longer in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.agent.secrets import TlsSecrets
from proxylib.errors import ConfigError
from xds.policy import TLSContext

PEM = b"-----BEGIN SOMETHING-----\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default/web").mkdir(parents=True)
    return tmp_path


def test_items_have_kubernetes_names_or_those_of_the_policy(folder: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt", "my.crt", "my.key"):
        (folder / "default/web" / name).write_bytes(PEM + name.encode())
    secrets = TlsSecrets(folder)
    plain = secrets.identity(TLSContext("", "web"))
    named = secrets.identity(TLSContext("default", "web", "", "my.crt", "my.key"))
    trusted = secrets.trust(TLSContext("default", "web"))
    assert (plain.certificate, plain.private_key) == (PEM + b"tls.crt", PEM + b"tls.key")
    assert (named.certificate, named.private_key) == (PEM + b"my.crt", PEM + b"my.key")
    assert trusted.trusted_ca == PEM + b"ca.crt"
    names = {plain.name, named.name, trusted.name}
    assert len(names) == 3
    assert not any("/" in name for name in names)


def test_the_last_good_one_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / "default/web/ca.crt"
    context, secrets = TLSContext("default", "web"), TlsSecrets(folder)
    with pytest.raises(ConfigError, match=r"ca\.crt: not a regular file"):
        secrets.trust(context)
    file.write_bytes(PEM)
    assert secrets.trust(context).trusted_ca == PEM
    caplog.clear()
    file.write_bytes(b"no PEM")
    assert [secrets.trust(context).trusted_ca for _ in range(3)] == [PEM] * 3
    assert [record.message for record in caplog.records] == [
        f"TLS secret default:web:ca.crt: {file}: not PEM text; the last good one stays"
    ]
    file.write_bytes(PEM + b"new")
    assert secrets.trust(context).trusted_ca == PEM + b"new"


@pytest.mark.parametrize("item", ["../web/ca.crt", "/etc/passwd", "..", ".hidden", "a/b", "a\n"])
def test_no_item_leads_out_of_its_secret(folder: Path, item: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a secret's item"):
        TlsSecrets(folder).trust(TLSContext("default", "web", item))


def test_without_a_folder_there_is_none() -> None:
    with pytest.raises(ConfigError, match="the agent has no secrets-dir"):
        TlsSecrets(None).identity(TLSContext("default", "web"))
