from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import bcc_worker, compiler, headers, maps, syscall
from bpf.errors import LOG_SHOWN, BpfError, CompileError

SOURCE = """\
#include "common.h"
#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

int judge(struct __sk_buff *skb)
{
	u32 number = NUMBER;
	void *map = (void *)bpf_pseudo_fd(1, MAP_ENDPOINTS);
	struct endpoint_value *endpoint = bpf_map_lookup_elem(map, &number);
	return endpoint && endpoint->identity == IDENTITY ? TC_ACT_SHOT : TC_ACT_OK;
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "judge.c"
    path.write_text(SOURCE)
    return path


def compiled(source: Path, cache: Path) -> dict[str, compiler.Code]:
    return compiler.compile_source(source, cache, {"IDENTITY": 7}, ["NUMBER"])


def test_a_program_sees_our_maps_and_constants(source: Path, cache: Path, bpffs: Path) -> None:
    from bpf import schema

    opened = maps.open_maps(bpffs / "v1", {})
    fds = {name: found.fd for name, found in opened.items()}
    opened["endpoints"].set(schema.U32.pack(5), schema.ENDPOINT.pack(7, 0, 0, 0))
    code = compiled(source, cache)
    answers = []
    for number in (5, 6):
        fd = compiler.load(code, "judge", fds, constants={"NUMBER": number})
        answers.append(syscall.run_program(fd, bytes(64)).code)
        os.close(fd)
    assert answers == [2, 0]
    maps.close_maps(opened)


def test_what_was_compiled_is_kept(
    source: Path, cache: Path, privileged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(source, cache)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", refuse)
        assert compiled(source, cache) == first
        source.write_text(SOURCE + "\n")
        with pytest.raises(AssertionError, match="compiled again"):
            compiled(source, cache)
    for kept in (cache / "compiled").iterdir():
        kept.write_text(kept.read_text()[:100])
    source.write_text(SOURCE)
    assert compiled(source, cache) == first


def test_a_cache_that_is_full(
    source: Path, cache: Path, privileged: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It compiles all the same, and says what it could not keep."""
    small = cache / "small"
    headers.tree(small)
    (small / "compiled").write_text("a file, not a folder")
    assert compiled(source, small).keys() == {"judge"}
    assert "is compiled again next time" in caplog.text
    source.unlink()
    with pytest.raises(BpfError, match=r"judge\.c cannot be read: No such file"):
        compiled(source, small)


def test_the_compiler_is_heard(source: Path, cache: Path, privileged: None, capfd: object) -> None:
    source.write_text(SOURCE.replace("TC_ACT_OK;", "TC_ACT;"))
    with pytest.raises(CompileError) as caught:
        compiled(source, cache)
    assert f"{source}:14:" in caught.value.log
    assert "Traceback" not in caught.value.log
    assert isinstance(capfd, pytest.CaptureFixture)
    assert capfd.readouterr() == ("", "")


def test_the_verifier_is_heard(source: Path, cache: Path, bpffs: Path) -> None:
    source.write_text(SOURCE.replace("endpoint && ", ""))
    opened = maps.open_maps(bpffs / "v1", {})
    fds = {name: found.fd for name, found in opened.items()}
    with pytest.raises(CompileError, match="the kernel refuses the program judge") as caught:
        compiler.load(compiled(source, cache), "judge", fds, constants={"NUMBER": 1})
    assert "map_value_or_null" in caught.value.log
    with pytest.raises(BpfError, match="uses the map 'endpoints'"):
        compiler.load(compiled(source, cache), "judge", {})
    with pytest.raises(BpfError, match="no function 'other': judge"):
        compiler.load(compiled(source, cache), "other", fds)
    maps.close_maps(opened)


def test_a_long_log_is_shown_from_its_end() -> None:
    log = "".join(f"{n}\n" for n in range(100_000))
    error = CompileError("refused", log)
    assert error.log == log
    assert str(error).startswith("refused\n…")
    assert str(error).endswith("\n99999\n")
    assert len(str(error)) < LOG_SHOWN + 100


def test_a_compiler_that_dies(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bcc"
    folder.mkdir()
    (folder / "libbcc.py").write_text("")
    (folder / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setattr(compiler, "BCC_FOLDERS", (folder,))
    with pytest.raises(CompileError, match="does not compile"):
        compiled(source, tmp_path / "cache")


def test_without_bcc(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "BCC_FOLDERS", (tmp_path,))
    with pytest.raises(BpfError, match="install the package python3-bpfcc"):
        compiled(source, tmp_path / "cache")


def test_bpf_is_imported_without_bcc() -> None:
    """Nor anything else that takes long, or needs root."""
    names = sorted(p.stem for p in Path(bcc_worker.__file__).parent.glob("[a-z]*.py"))
    text = "; ".join(["import sys", *(f"import bpf.{n}" for n in names)])
    text += "; assert not {'bcc', 'pyroute2'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", text], check=True)
