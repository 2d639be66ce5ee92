"""A new parser's package, from the templates beside this file.

Every template is text with ``$name``s (`string.Template`).  Those of one framing are
in a folder of its own; ``common/`` belongs to all.  What comes out is installable,
and its tests pass as they are.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from node.errors import UsageError
from proxylib.registry import is_parser_name, parser_names

FRAMINGS: Mapping[str, str] = {
    "line": "frames end in CRLF",
    "length": "frames begin with their length",
    "custom": "a function says where a frame ends",
}
"""Which scaffolds there are, and what each shows."""

_TEMPLATES = files("node.kit") / "templates"
_SUFFIX = ".in"
"""Of templates' names, so that no tool takes them for what they will be."""


def new_parser(name: str, folder: Path, framing: str) -> list[Path]:
    """Write the package of a parser called `name` into `folder`; returns the files.

    Raises UsageError if the name cannot be used or is taken, or if `folder` has
    anything in it: nothing is ever overwritten.
    """
    _check(name, folder)
    values = _values(name)
    written = []
    for template, path in _of_framing(framing):
        target = folder / string.Template(path).substitute(values)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = string.Template(template.read_bytes().decode()).substitute(values)
        # As bytes: line ends of a corpus are part of it.
        target.write_bytes(text.encode())
        written.append(target)
    return sorted(written)


def module_name(name: str) -> str:
    """The Python module of a parser called `name`."""
    return "proxylib_" + re.sub("[.-]", "_", name.lower())


def _check(name: str, folder: Path) -> None:
    if not is_parser_name(name):
        raise UsageError(f"{name!r} cannot be a parser's name: use letters, digits, . - _")
    if name in parser_names():
        raise UsageError(f"a parser {name!r} is installed already; choose another name")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: name another folder with --dir")


def _values(name: str) -> dict[str, str]:
    words = re.findall("[a-z0-9]+", name.lower())
    class_name = "".join(word.capitalize() for word in words)
    return {
        "name": name,
        "module": module_name(name),
        "address": _address(name),
        "distribution": module_name(name).replace("_", "-"),
        # A class may not begin with a digit.
        "class_name": class_name if class_name[:1].isalpha() else f"P{class_name}",
    }


def _address(name: str) -> str:
    """A loopback address for the tests' server: one for each name, so that the tests of
    two parsers do not get into each other's way."""
    _, *parts = hashlib.sha256(name.encode()).digest()[:4]
    return "127." + ".".join(str(1 + part % 254) for part in parts)


def _of_framing(framing: str) -> Iterator[tuple[Traversable, str]]:
    """The templates of `framing`, with the path that each becomes."""
    for folder in ("common", framing):
        yield from _walk(_TEMPLATES / folder, "")


def _walk(folder: Traversable, path: str) -> Iterator[tuple[Traversable, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{path}{item.name}/")
        elif item.name.endswith(_SUFFIX):
            yield item, f"{path}{item.name.removesuffix(_SUFFIX)}"
