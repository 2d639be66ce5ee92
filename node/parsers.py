"""Find the parser that a user means: a registered name, or a Python file."""

from __future__ import annotations

import difflib
import traceback
from dataclasses import dataclass
from pathlib import Path

from node.errors import UsageError
from proxylib.errors import RegistrationError
from proxylib.registry import get_parser_factory, load_parser_file, parser_names


@dataclass(frozen=True, slots=True)
class ParserChoice:
    """A parser's name, and the files (absolute paths) that must be loaded to have it."""

    name: str
    modules: tuple[Path, ...] = ()


def choose_parser(text: str) -> ParserChoice:
    """The parser named `text`, or registered by the file `text` (``FILE.py`` or ``FILE.py:NAME``).

    Loads it into this process too, so that policies can be checked against its rules.
    Raises UsageError with what to do; for a file that fails, with its traceback.
    """
    file, colon, wanted = text.partition(".py:")
    if colon or text.endswith(".py"):
        return _from_file(Path(file + ".py" if colon else text), wanted)
    if "/" in text:
        raise UsageError(f"parser {text!r}: a parser is a name or the path of a .py file")
    try:
        factory = get_parser_factory(text)
    except RegistrationError as error:
        raise UsageError(f"parser {text!r} does not load: {_story(error)}") from error
    if factory is None:
        raise UsageError(_unknown(text))
    return ParserChoice(text)


def is_for_tests(name: str) -> bool:
    """True for a parser that tests of proxies use, and nobody's protocol."""
    return name.startswith("test.")


def _from_file(path: Path, wanted: str) -> ParserChoice:
    path = path.absolute()
    if not path.is_file():
        raise UsageError(f"parser {path}: there is no such file")
    try:
        names = load_parser_file(path)
    except RegistrationError as error:
        raise UsageError(f"parser {path} does not load: {_story(error)}") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(f"parser {path} does not load: {_traceback(error)}") from error
    if wanted and wanted not in names:
        raise UsageError(f"parser {path} registers {', '.join(names)}, but not {wanted!r}")
    if not wanted and len(names) > 1:
        raise UsageError(
            f"parser {path} registers {', '.join(names)}: choose one, {path}:{names[0]}"
        )
    return ParserChoice(wanted or names[0], (path,))


def _unknown(text: str) -> str:
    names = parser_names()
    if text in names:
        return f"parser {text!r} is installed, but its module registers nothing by that name"
    close = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(name for name in names if not is_for_tests(name))
    return (
        f"unknown parser {text!r}: {hint}known are {known}; "
        "a parser of your own is named by its file, ./NAME.py"
    )


def _story(error: RegistrationError) -> str:
    """What happened: the author's traceback if their code raised, else our own text."""
    return _traceback(error.__cause__) if error.__cause__ is not None else str(error)


def _traceback(error: BaseException) -> str:
    """The traceback without the frames of the import machinery and of ours."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not frame.filename.startswith(_OURS)
    ]
    lines = traceback.format_list(frames) + traceback.format_exception_only(error)
    return "\n" + "".join(lines).rstrip()


_OURS = tuple(
    str(Path(module).resolve().parent)
    for module in (__file__, get_parser_factory.__code__.co_filename)
)
