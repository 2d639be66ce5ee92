"""Reading YAML so that every error can name its place.

A file is read within bounds and parsed (`xds.yamltext`) into values and nodes that
know their line and column; `Document` keeps both, so that a path such as
``specs[0].ingress[1]`` can be turned into a place at any later time.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as FilePath
from typing import Any

from proxylib.errors import PolicyError
from proxylib.regex import Budget
from xds import yamltext
from xds.yamltext import MAX_PROBLEMS, Node, Path

MAX_FILE = 16 << 20
"""Largest file, bytes. Some thirty thousand policies fit."""

MAX_MESSAGE = 1000
"""Longest message of a problem, characters."""

_MAX_STEP = 80
"""Longest key in the text of a path, characters."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


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
    """One error or warning, and its place. A message that is too long is cut."""

    place: Place
    message: str

    def __post_init__(self) -> None:
        if len(self.message) > MAX_MESSAGE:
            object.__setattr__(self, "message", f"{self.message[: MAX_MESSAGE - 1]}…")

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class DocumentError(PolicyError):
    """Documents cannot be put in force; none is. `problems` has the reasons, the first hundred."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(islice(problems, MAX_PROBLEMS))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One YAML document: its plain value, and the nodes that know the places.

    budget: of its regexes; the documents of a file share one.
    """

    file: str
    value: Any
    root: Node = field(repr=False)
    budget: Budget = field(default_factory=Budget, repr=False)

    def place(self, path: Path = ()) -> Place:
        """The place of the value at `path`, or of the nearest one above that exists."""
        node = self.root
        for step in path:
            below = _below(node, step)
            if below is None:
                break
            node = below
        mark = yamltext.mark_of(node)
        line, column = yamltext.line_of(mark) + 1, yamltext.column_of(mark) + 1
        return Place(self.file, line, column, dotted(path))

    def at(self, path: Path) -> Any:
        """The value at `path`; None if there is none."""
        value = self.value
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

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
        elif len(step) > _MAX_STEP:
            text += f'["{step[: _MAX_STEP - 1]}…"]'
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


@contextmanager
def building() -> Iterator[None]:
    """Put off the collection of cycles while many objects are made that all stay.

    Without this, the collector takes most of the time that ten thousand policies
    take to load, and finds nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_documents(file: str, text: str) -> list[Document]:
    """Every document of a YAML `text`; `file` is its name in messages.

    Documents that are empty (nothing between two ``---``) are left out.  Raises
    DocumentError if the text is not YAML, or uses what is refused here.
    """
    if len(text) > MAX_FILE:
        raise DocumentError([Problem(Place(file), f"larger than {MAX_FILE} characters")])
    with building():
        found, troubles = yamltext.read(text)
    if troubles:
        raise DocumentError(
            Problem(Place(file, line + 1, column + 1, dotted(path)), message)
            for line, column, path, message in troubles
        )
    budget = Budget()
    return [Document(file, value, root, budget) for value, root in found if value is not None]


def _below(node: Node, step: str | int) -> Node | None:
    if isinstance(node, int):
        return None
    below = node[1]
    if isinstance(below, dict):
        return below.get(step) if isinstance(step, str) else None
    return below[step] if isinstance(step, int) and step < len(below) else None


def _file_error(path: FilePath, message: str) -> DocumentError:
    return DocumentError([Problem(Place(str(path)), message)])
