"""`tests/` mirrors the sources: ``a/b.py`` is tested in ``tests/a/test_b.py``.

What is tested elsewhere, or is a test of no one source, stands here with its reason.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
FOLDERS = ("proxylib", "parsers", "xds", "bpf", "node")

ELSEWHERE = {
    # source: (the test that covers it, why not its mirror)
    "proxylib/commands.py": ("tests/node/test_reloading.py", "runs only inside the library"),
    "proxylib/embed.py": ("tests/native/test_cabi.py", "runs only inside the library"),
    "proxylib/native/build.py": ("tests/native/test_cabi.py", "its product is what is tested"),
    "proxylib/errors.py": ("tests/proxylib/test_rules.py", "types without behaviour"),
    "proxylib/limits.py": ("tests/proxylib/test_connection.py", "numbers"),
    "proxylib/logstream.py": ("tests/proxylib/test_connection.py", "what a connection writes to"),
    "proxylib/rawloop.py": ("tests/proxylib/test_connection.py", "how a connection calls"),
    "proxylib/message.py": ("tests/proxylib/test_rules.py", "a dict"),
    "proxylib/ops.py": ("tests/proxylib/test_connection.py", "numbers"),
    "proxylib/parser.py": ("tests/proxylib/test_connection.py", "abstract bases"),
    "proxylib/sandbox/isolation.py": ("tests/faults/test_isolation.py", "in a real Envoy"),
    "proxylib/sandbox/worker.py": ("tests/faults/test_isolation.py", "in a real Envoy"),
    "proxylib/testing/host.py": ("tests/native/test_dialogues.py", "held against the C host"),
    "proxylib/accesslog/listening.py": (
        "tests/proxylib/accesslog/test_server.py",
        "the server's socket",
    ),
    "bpf/sockmap_programs.py": ("tests/bpf/test_sockmap.py", "by what they do"),
    "bpf/selftest_worker.py": ("tests/bpf/test_selftest.py", "a program that it starts"),
    "bpf/bcc_worker.py": ("tests/bpf/test_compiler.py", "runs only in the compiler's process"),
    "bpf/netlink.py": ("tests/bpf/test_tc.py", "by what it is used for"),
    "bpf/errors.py": ("tests/bpf/test_compiler.py", "types without behaviour"),
    "node/console.py": ("tests/node/test_run.py", "what it prints is what is tested"),
    "node/stopping.py": ("tests/node/test_run.py", "signals, sent to the real program"),
    "node/client.py": ("tests/node/test_remote.py", "by the commands that use it"),
    "node/errors.py": ("tests/node/test_cli.py", "types without behaviour"),
}

GROUPS = {
    # folder of sources: (the test or folder of tests that covers all of it, why)
    "node/agent": ("tests/node/agent", "small files, most of them tested by what they do together"),
    "node/api": ("tests/node/api", "tested by requests"),
    "node/commands": ("tests/node/test_cli.py", "thin: arguments in, a call, text out"),
    "node/proxy": ("tests/node/proxy", "small files, tested by what a real Envoy does"),
    "parsers/cassandra": ("tests/parsers/cassandra", "tested by its dialogues, not by file"),
    "parsers/http": ("tests/parsers/http", "tested by its dialogues, not by file"),
    "parsers/kafka": ("tests/parsers/kafka", "tested by its dialogues, not by file"),
    "parsers/memcache": ("tests/parsers/memcache", "tested by its dialogues, not by file"),
    "parsers/redis": ("tests/parsers/redis", "tested by its dialogues, not by file"),
    "xds": ("tests/xds", "small files that are tested by what they do together"),
}

NO_SOURCE = {
    # folder or file of tests: what they are tests of
    "tests/native": "the built library",
    "tests/docs": "README and docs",
    "tests/demos": "demos/, each a story and a test",
    "tests/integration": "everything, with real servers",
    "tests/faults": "the sandbox, by parsers that misbehave",
    "tests/fuzz": "the parsers, by their corpora",
    "tests/benchmarks": "benchmarks/",
    "tests/parsers/cassandra": "parsers/cassandra, by its dialogues",
    "tests/parsers/http": "parsers/http, by its dialogues",
    "tests/parsers/kafka": "parsers/kafka, by its dialogues",
    "tests/parsers/memcache": "parsers/memcache, by its dialogues",
    "tests/parsers/redis": "parsers/redis, by its dialogues",
    "tests/bpf/datapath": "bpf/programs/endpoint.c",
    "tests/xds": "xds/, by what its files do together",
    "tests/node/agent": "node/agent/, by what its files do together",
    "tests/node/api": "node/api/, by requests",
    "tests/node/proxy": "node/proxy/, by what a real Envoy does",
    "tests/node/cni/test_chain.py": "node/cni, behind real plugins",
    "tests/node/systemd/test_unit.py": "node/systemd's unit file",
    "tests/node/test_remote.py": "the commands that speak to an agent",
    "tests/proxylib/sandbox/test_memory.py": "proxylib/native/memory.c",
    "tests/node/test_static_config.py": "envoy_configs/",
    "tests/test_layout.py": "tests/",
    "tests/test_imports.py": "the import rules",
    "tests/parsers/test_regexes.py": "the regular expressions of all packages",
}


def under(path: Path, places: object) -> bool:
    names = [path, *path.parents]
    return any(str(name) in places for name in names)  # type: ignore[operator]


def sources() -> list[Path]:
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    skipped = ("__init__.py", "__main__.py")
    return sorted(
        path.relative_to(ROOT)
        for path in found
        if path.name not in skipped and not path.name.endswith("_pb2.py")
    )


def files_of_tests() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in TESTS.rglob("test_*.py"))


def mirror(source: Path) -> Path:
    return Path("tests") / source.with_name(f"test_{source.name}")


@pytest.mark.parametrize("source", sources(), ids=str)
def test_source_has_a_test(source: Path) -> None:
    if under(source, GROUPS):
        return
    test = Path(ELSEWHERE[str(source)][0]) if str(source) in ELSEWHERE else mirror(source)
    assert (ROOT / test).is_file(), f"{source} needs {test}"


@pytest.mark.parametrize("test", files_of_tests(), ids=str)
def test_test_has_a_source(test: Path) -> None:
    if under(test, NO_SOURCE):
        return
    source = Path(*test.parts[1:]).with_name(test.name.removeprefix("test_"))
    folder = source.with_suffix("")
    assert (ROOT / source).is_file() or (ROOT / folder).is_dir(), f"{test}: no {source}"


def test_exceptions_are_needed() -> None:
    for source, (test, _) in ELSEWHERE.items():
        assert (ROOT / source).is_file(), f"{source} is gone"
        assert not (ROOT / mirror(Path(source))).exists(), f"{source} has its own test: {test}"
    for folder, (test, _) in GROUPS.items():
        assert (ROOT / folder).is_dir(), f"{folder} is gone"
        assert (ROOT / test).exists(), f"{folder} needs {test}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_nothing_ignored_is_tracked() -> None:
    """A cache or a build, once committed, replaces other people's."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
