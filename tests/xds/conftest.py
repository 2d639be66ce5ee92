"""What the tests of the control server share: parsers, examples, and short paths."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import parsers.r2d2  # noqa: F401 - registers r2d2
from proxylib import Exact, FramedParser, L7Rule, Message, Prefix, Regex, lines
from proxylib.errors import RegistrationError
from proxylib.registry import get_parser_factory, parser

EXAMPLES = Path(__file__).parent / "examples"


class KeyValueRule(L7Rule):
    """The keys of the memcache parser, for tests of what stands around the rules."""

    command = Exact("get", "set", "writeGroup")
    keyExact = Exact()
    keyPrefix = Prefix()
    keyRegex = Regex()


@parser("test.xds")
class KeyValue(FramedParser):
    """A line protocol with memcache's rule keys."""

    framing = lines(b"\r\n")
    Rule = KeyValueRule

    def request(self, frame: bytes) -> Message:
        return Message(keyExact=frame)


def example(name: str) -> str:
    """An example document; its l7proto becomes test.xds if nobody has its parser."""
    text = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")
    for proto in set(re.findall(r"l7proto: (\w+)", text)):
        try:
            known = get_parser_factory(proto) is not None
        except RegistrationError:
            known = False
        if not known:
            text = text.replace(f"l7proto: {proto}", "l7proto: test.xds")
    return text


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="xds") as path:
        yield Path(path)
