"""Reading YAML so that every error can name its place.

A file is read within bounds and parsed into nodes that know their line and
column; `Document` keeps the nodes beside the plain value, so that a path such as
``specs[0].ingress[1]`` can be turned into a place at any later time.  What YAML
allows and a policy never needs (tags, merge keys, keys that are not text, the
same key twice) is refused here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from proxylib.errors import PolicyError

Path = tuple[str | int, ...]
"""Keys and indices from a document's root to a value in it."""

MAX_FILE = 4 << 20
"""Largest file, bytes. Some ten thousand rules fit."""

MAX_DEPTH = 48
"""Deepest nesting. A policy needs twelve."""

MAX_NODES = 500_000
"""Most values in one file, each use of an alias counted anew (alias bombs)."""

MAX_PROBLEMS = 100
"""Most problems reported for one file; a hostile one could make millions."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands. Lines and columns count from 1; 0 is "not known"."""

    file: str
    line: int = 0
    column: int = 0
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.path}" if self.path else where


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning, and its place."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class DocumentError(PolicyError):
    """Documents cannot be put in force. `problems` has every reason; none is in force."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One YAML document: its plain value, and the nodes that know the places."""

    file: str
    value: Any
    root: Node = field(repr=False)

    def place(self, path: Path = ()) -> Place:
        """The place of the value at `path`, or of the nearest one above that exists."""
        node, mark = self.root, self.root.start_mark
        for step in path:
            below = _below(node, step)
            if below is None:
                break
            node, mark = below
        return Place(self.file, mark.line + 1, mark.column + 1, dotted(path))

    def problem(self, path: Path, message: str) -> Problem:
        """A problem of the value at `path`."""
        return Problem(self.place(path), message)


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a rule comes from; its place is worked out only when somebody asks."""

    document: Document
    path: Path

    @property
    def place(self) -> Place:
        return self.document.place(self.path)

    def below(self, *steps: str | int) -> Origin:
        """The origin of what stands `steps` further down."""
        return Origin(self.document, self.path + steps)


def dotted(path: Path) -> str:
    """``specs[0].ingress[1].toPorts`` for a path; keys with other characters are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def read_file(path: FilePath) -> str:
    """The text of a file. Raises DocumentError if it cannot be read within bounds."""
    try:
        if path.exists() and not path.is_file():
            raise _file_error(path, "not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _file_error(path, error.strerror or str(error)) from error
    if len(data) > MAX_FILE:
        raise _file_error(path, f"larger than {MAX_FILE} bytes; split it into several files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        place = Place(str(path), line, column)
        raise DocumentError([Problem(place, "not UTF-8 text")]) from error


def read_documents(file: str, text: str) -> list[Document]:
    """Every document of a YAML `text`; `file` is its name in messages.

    Documents that are empty (nothing between two ``---``) are left out.  Raises
    DocumentError if the text is not YAML, or uses what is refused here.
    """
    if len(text) > MAX_FILE:
        raise DocumentError([Problem(Place(file), f"larger than {MAX_FILE} characters")])
    yaml = YAML(typ="rt")
    yaml.max_depth = MAX_DEPTH
    # The same anchor may be defined twice; the later one counts from there on.
    yaml.composer.warn_double_anchors = False
    try:
        roots = [root for root in yaml.compose_all(text) if root is not None]
    except (YAMLError, RecursionError, ValueError) as error:
        raise DocumentError([_syntax_problem(file, text, error)]) from error
    reader = _Reader(file)
    documents = [Document(file, reader.value(root, ()), root) for root in roots]
    if reader.problems:
        raise DocumentError(reader.problems)
    return [document for document in documents if document.value is not None]


class _Reader:
    """Nodes to plain values, with a budget over all documents of a file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.budget = MAX_NODES

    def value(self, node: Node, path: Path) -> Any:
        self.budget -= 1
        if self.budget == 0:
            self.report(node, path, f"more than {MAX_NODES} values in one file, aliases included")
        if self.budget <= 0 or len(self.problems) >= MAX_PROBLEMS:
            return None
        if len(path) > MAX_DEPTH:
            self.report(node, path, f"nested deeper than {MAX_DEPTH} (an alias inside itself?)")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if str(node.tag) not in (_TAG + "map", _TAG + "seq"):
            self.report(node, path, f"YAML tag {str(node.tag)!r} is not used in policies")
            return None
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return dict(self.pairs(node, path))

    def pairs(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            if str(key.tag) == _TAG + "merge":
                self.report(key, path, "merge keys (<<) are not used in policies; write it out")
            elif not isinstance(key, ScalarNode) or str(key.tag) != _TAG + "str":
                text = repr(key.value) if isinstance(key, ScalarNode) else "a list or mapping"
                self.report(key, path, f"a key must be text, not {text}; put it in quotes")
            elif not _is_unicode(key.value):
                self.report(key, path, "half of a surrogate pair is no character")
            elif key.value in seen:
                message = f"the same key twice; the first is in line {seen[key.value]}"
                self.report(key, (*path, key.value), message)
            else:
                seen[key.value] = key.start_mark.line + 1
                yield key.value, self.value(value, (*path, key.value))

    def scalar(self, node: ScalarNode, path: Path) -> object:
        tag, text = str(node.tag), str(node.value)
        if not _is_unicode(text):
            self.report(node, path, "half of a surrogate pair is no character")
            return None
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() in ("true", "yes", "on")
            case "int":
                # Other spellings stay text, and are refused where a number is due.
                return int(text) if _DECIMAL.fullmatch(text) else text
            case "float":
                with contextlib.suppress(ValueError):
                    return float(text)
                return text
            case "timestamp" | "str":
                return text
        self.report(node, path, f"YAML tag {tag!r} is not used in policies")
        return None

    def report(self, node: Node, path: Path, message: str) -> None:
        mark = node.start_mark
        place = Place(self.file, mark.line + 1, mark.column + 1, dotted(path))
        self.problems.append(Problem(place, message))


def _below(node: Node, step: str | int) -> tuple[Node, Any] | None:
    if isinstance(node, MappingNode):
        return next(((v, k.start_mark) for k, v in node.value if k.value == step), None)
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item, item.start_mark
    return None


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _syntax_problem(file: str, text: str, error: Exception) -> Problem:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        return Problem(Place(file, line, column), "a character that YAML does not allow")
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file)
        if isinstance(error, MaxDepthExceededError):
            return Problem(place, f"nested deeper than {MAX_DEPTH}")
        # The first line says it; the rest is advice to programmers.
        what = (error.problem or error.context or "syntax error").strip().split("\n")[0]
        return Problem(place, f"not valid YAML: {what}")
    if isinstance(error, RecursionError):
        return Problem(Place(file), f"nested deeper than {MAX_DEPTH}")
    return Problem(Place(file), f"not valid YAML: {str(error).strip() or type(error).__name__}")


def _file_error(path: FilePath, message: str) -> DocumentError:
    return DocumentError([Problem(Place(str(path)), message)])
