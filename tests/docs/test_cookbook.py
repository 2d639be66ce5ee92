"""docs/cookbook.md shows docs/recipes/, and each recipe does what the page says."""

from __future__ import annotations

import socketserver
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxylib import registry
from proxylib.registry import load_parser_file
from proxylib.sandbox import Settings
from proxylib.testing import Host, check_chunking, check_dialogue, check_parser
from tests.docs.pages import BLOCK, DOCS
from tests.serving import serving

RECIPES = sorted((DOCS / "recipes").glob("*.py"))
PAGE = (DOCS / "cookbook.md").read_text()

ORDER = ["binary", "text", "pairs", "streams", "order", "packed", "starttls"]
LAST = ["recipe.starttls", "recipe.asking"]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_factories", {})
        for path in RECIPES:
            assert load_parser_file(path) == [f"recipe.{path.stem}"]
        yield


def test_the_page_shows_the_recipes() -> None:
    shown = {info: code for info, code in BLOCK.findall(PAGE) if info.startswith("python")}
    assert shown == {f"python file=recipes/{path.name}": path.read_text() for path in RECIPES}


def test_the_dialogues_of_the_page() -> None:
    """Each is of the recipe above it; rules to allow, or behind "deny" to deny, are in its info."""
    played = []
    name = ""
    for info, code in BLOCK.findall(PAGE):
        kind, _, words = info.partition(" dialogue ")
        if kind == "text":
            denied = words.startswith("deny ")
            rules = [dict([words.removeprefix("deny ").split("=")])]
            check_dialogue(name, code, None if denied else rules, deny=rules if denied else ())
            played.append(name)
        else:
            name = f"recipe.{Path(info).stem}"
    assert played == [*(f"recipe.{name}" for name in ORDER), *LAST]


def binary(opcode: int, key: bytes, value: bytes = b"") -> bytes:
    size = 5 + len(key) + len(value)
    return bytes([0xD2, opcode]) + size.to_bytes(2) + bytes([len(key)]) + key + value


def stream(number: int, body: bytes, status: int = 0) -> bytes:
    return (3 + len(body)).to_bytes(2) + number.to_bytes(2) + bytes([status]) + body


def packed(body: bytes, flag: int = 1) -> bytes:
    return (1 + len(body)).to_bytes(4) + bytes([flag]) + body


SAMPLES = {
    "recipe.binary": [binary(1, b"k"), binary(2, b"key", b"value"), binary(1, b"")],
    "recipe.text": [b"GET a\r\n", b"PUT a 5\r\nhello\r\n", b"PUT b 0\r\n\r\n"],
    "recipe.pairs": [b"GET a\r\n", b"+OK\r\n"],
    "recipe.streams": [stream(1, b"t"), stream(2, b"u"), stream(1, b"", 1)],
    "recipe.order": [b"GET a\r\n", b"+OK\r\n"],
    "recipe.packed": [packed(zlib.compress(b"GET a")), packed(b"GET a", 0)],
    "recipe.asking": [b"GET a\r\n"],
    "recipe.starttls": [b"220 hello\r\n", b"EHLO me\r\n", b"STARTTLS\r\n", b"\x16\x03\x01"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_no_dialogue_hurts_a_recipe(name: str) -> None:
    check_parser(name, SAMPLES[name], dialogues=60)


def statuses(host: Host) -> list[Any]:
    return [record.fields.get("status") for record in host.log]


def test_lengths_that_lie() -> None:
    for frame in (b"\xd2\x01\x00\x04", b"\xd2\x01\x00\x05\xff", b"\xd2\x01\x00\x03"):
        host = Host("recipe.binary")
        host.client(frame)
        assert host.closed
        assert str(statuses(host)[-1]).startswith("Parser error")


def test_a_large_body_passes_unseen() -> None:
    host = Host("recipe.text", [{"cmd": "PUT"}])
    sent = b"PUT a 100000\r\n"
    assert host.client(sent) == sent
    called = len(host.ops)
    body = b"x" * 100_000
    assert host.client(body[:50_000], body[50_000:]) == body
    assert len(host.ops) == called
    assert host.client(b"\r\n") == b"\r\n"


def test_latency_is_from_the_request_to_its_reply() -> None:
    host = Host("recipe.pairs", [{"cmd": "GET"}])
    now = iter([100, 200, 1100, 5200])
    host.connection.monotonic_ns = lambda: next(now)
    host.client(b"GET a\r\nGET b\r\n")
    host.server(b"+OK a\r\n+OK b\r\n")
    assert [record.latency for record in host.log[2:]] == [1000, 5000]


def test_replies_to_no_request() -> None:
    for name in ("recipe.pairs", "recipe.order"):
        host = Host(name)
        host.server(b"+OK\r\n")
        assert host.closed
    host = Host("recipe.streams")
    host.server(stream(3, b""))
    assert host.closed


def test_a_client_that_never_reads_is_bounded() -> None:
    for name in ("recipe.pairs", "recipe.order"):
        host = Host(name)
        host.client(b"GET\r\n" * 1001)
        assert statuses(host)[-1] == "Parser error: more than 1000 requests without a reply"
    host = Host("recipe.streams")
    host.client(b"".join(stream(number, b"t") for number in range(257)))
    assert host.closed


def test_what_is_denied_behind_others_waits_for_them() -> None:
    dialogue = [
        (False, b"GET a\r\nSET b\r\nSET c\r\nGET d\r\n"),
        (True, b"+A\r\n+D\r\n"),
        (False, b"SET e\r\n"),
    ]
    outcome = check_chunking("recipe.order", dialogue, [{"cmd": "GET"}])
    assert outcome.to_client == b"+A\r\n-DENIED\r\n-DENIED\r\n+D\r\n-DENIED\r\n"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(zlib.compress(b"GET " + b"x" * (64 << 10)), id="longer than the limit"),
        pytest.param(zlib.compress(bytes(10 << 20)), id="a bomb"),
        pytest.param(zlib.compress(b"GET a") + b"SET b", id="something behind"),
        pytest.param(zlib.compress(b"GET a")[:-1], id="cut"),
        pytest.param(b"GET a", id="not packed"),
    ],
)
def test_what_cannot_be_unpacked_closes(body: bytes) -> None:
    host = Host("recipe.packed", [{"cmd": "GET"}])
    assert host.client(packed(body)) == b""
    assert host.closed
    assert str(statuses(host)[-1]).startswith("Parser error: a body that")


def test_unpacked_up_to_the_limit() -> None:
    host = Host("recipe.packed", [{"cmd": "GET"}])
    frame = packed(zlib.compress(b"GET " + b"x" * ((64 << 10) - 4)))
    assert host.client(frame) == frame


def test_what_follows_starttls_in_plain_text_closes() -> None:
    """The server might take it for what the client said inside TLS."""
    host = Host("recipe.starttls", [{"cmd": "STARTTLS"}])
    host.server(b"220 hello\r\n")
    assert host.client(b"STARTTLS\r\nRCPT evil\r\n") == b"STARTTLS\r\n"
    assert host.closed


def test_a_starttls_that_the_server_refuses_changes_nothing() -> None:
    host = Host("recipe.starttls", [{"cmd": "STARTTLS"}])
    host.server(b"220 hello\r\n")
    host.client(b"STARTTLS\r\n")
    host.server(b"454 no\r\n")
    host.client(b"STARTTLS\r\n")
    assert len(host.log) == 2


class Judge(socketserver.StreamRequestHandler):
    """Lets everybody GET."""

    def handle(self) -> None:
        self.wfile.write(b"yes\n" if self.rfile.readline() == b"may GET\n" else b"no\n")


def test_a_service_decides() -> None:
    with serving(Judge) as service:
        settings = Settings(config={"service": str(service)}, time_budget=60)
        host = Host("recipe.asking", settings=settings)
        assert host.client(b"GET a\r\nSET a\r\nGET b\r\n") == b"GET a\r\nGET b\r\n"
        assert host.take(True) == b"-not allowed\r\n"
