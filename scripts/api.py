"""Writes docs/api.md, the reference of the public API, from the docstrings; --check compares.

What is public is what `proxylib.__all__` and its testing module's say; where each name
stands on the page is said here, and a name that stands nowhere is an error.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"

HEAD = """\
# Reference of the public API

Made from the docstrings by `make api`. [The author's guide](author-guide.md) shows these names
in use, [the cookbook](cookbook.md) whole parsers.
"""

SECTIONS = {
    # title: (module, an introduction, names in their order)
    "Parsers": (
        "proxylib",
        "What an author writes: a class, registered under a name.",
        "parser FramedParser BatchParser Parser Connection ParserFactory register_parser_factory",
    ),
    "Framing": ("proxylib", "Where a frame ends.", "lines length_prefix Framing"),
    "Messages": ("proxylib", "What a frame says.", "Message Properties Value EntryType"),
    "Rules": (
        "proxylib",
        "What a policy may say about messages.",
        "L7Rule Field Exact Prefix Suffix Contains Regex Matcher affix_test",
    ),
    "Verdicts": (
        "proxylib",
        "What `Parser.on_data` answers, and a batch parser appends.",
        "Op MORE,PASS,DROP,INJECT,ERROR,NOP,WAIT ErrorCode FilterResult OnError",
    ),
    "Errors": ("proxylib", "", "ProxylibError ParserError RuleError RegistrationError"),
    "HTTP": (
        "proxylib",
        "What parsers of HTTP share with the filter for HTTP that Envoy decodes.",
        "HttpRule Headers HeaderEdits DENIED_BODY log_fields normalize_path path_test redact",
    ),
    "Limits": ("proxylib", "", "limits"),
    "Tests": (
        "proxylib.testing",
        "`from proxylib.testing import …`; neither Envoy nor sockets are needed.",
        "check_dialogue check_chunking check_parser Host HostClosed LogRecord play Outcome "
        "byte_by_byte policy_map",
    ),
    "Random cuts": (
        "proxylib.testing.strategies",
        "`from proxylib.testing.strategies import …`; needs the package hypothesis.",
        "cuts chunks cut_at",
    ),
}

SHOWN = {
    # Of these, only what authors use; the rest is the engine's and its hosts'.
    "Connection": "matches matcher log inject ask decision config sends_both_ways monotonic_ns "
    "parser_name ingress src_id dst_id src_addr dst_addr port policy_name",
}

MAX_VALUE = 30
"""Characters of a default that is shown."""


def render() -> str:
    """The whole page. Raises SystemExit for a name that has no place on it, or no docstring."""
    package = griffe.load("proxylib", search_paths=[str(ROOT)])
    parts = [HEAD]
    placed: dict[str, set[str]] = {}
    for title, (module, about, names) in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [f"{about}\n"] if about else []
        placed.setdefault(module, set()).update(re.split("[ ,]", names))
        for name in names.split():
            if "," in name:
                parts += _abbreviations(name.split(","))
                continue
            parts += _item(name, _find(package.modules_collection, module, name))
    for module in ("proxylib", "proxylib.testing"):
        public = {str(name) for name in package.modules_collection[module].exports or ()}
        if public != placed[module]:
            names = ", ".join(sorted(public ^ placed[module]))
            raise SystemExit(f"say in SECTIONS of scripts/api.py where these stand: {names}")
    return "\n".join(parts)


def _find(modules: griffe.ModulesCollection, module: str, name: str) -> griffe.Object:
    """What a module means by a name; a submodule of the same name is something else."""
    owner, _, leaf = modules[module].imports.get(name, f"{module}.{name}").rpartition(".")
    item = modules[owner][leaf]
    return item.final_target if item.is_alias else item


def _abbreviations(names: list[str]) -> Iterator[str]:
    yield f"### {', '.join(names)}\n"
    yield "\n".join(f"- `{name}` is `Op.{name}`" for name in names) + "\n"


def _item(name: str, item: griffe.Object) -> Iterator[str]:
    yield f"### {name}\n"
    match item:
        case griffe.Module():
            yield _text(item) + "\n"
            yield from _constants(item)
        case griffe.Class():
            bases = ", ".join(str(base) for base in item.bases)
            yield _code(f"class {name}" + (f"({bases})" if bases else ""))
            yield _text(item) + "\n"
            yield from _members(item)
        case griffe.Function():
            yield _code(_signature(name, item))
            yield _text(item) + "\n"
        case griffe.Attribute():
            yield _code(f"{name} = {item.value}")
            yield _text(item) + "\n"


def _constants(module: griffe.Module) -> Iterator[str]:
    """A table of a module's numbers; several may share one docstring, the last one's."""
    yield "| name | value | |\n|---|---|---|"
    names, values = [], []
    for name, item in module.attributes.items():
        if name.isupper():
            names.append(f"`{name}`")
            values.append(f"`{item.value}`")
            if item.docstring:
                about = " ".join(item.docstring.value.split())
                yield f"| {', '.join(names)} | {', '.join(values)} | {about} |"
                names, values = [], []
    yield ""


def _members(item: griffe.Class) -> Iterator[str]:
    chosen = SHOWN.get(item.name, "").split() or list(item.members)
    for name in chosen:
        member = item.members[name]
        if name.startswith("_") and name != "__init__":
            continue
        if name == "__init__":
            if len(member.parameters) == 1 or item.name in SHOWN:
                continue
            yield f"- `{_signature(item.name, member)}`" + _under(member)
        elif member.is_function and member.docstring:
            yield f"- `{_signature(name, member)}`" + _under(member)
        elif member.is_attribute and (member.docstring or _is_number(member)):
            yield f"- `{name}{_kind(member)}`" + _under(member)
        elif member.is_class:
            yield f"- `class {name}`" + _under(member)
    yield ""


def _is_number(member: griffe.Attribute) -> bool:
    return member.value is not None and str(member.value).isdigit()


def _kind(member: griffe.Attribute) -> str:
    """Type and value, as far as they tell something."""
    note = re.sub(r"^ClassVar\[(.*)\]$", r"\1", str(member.annotation or ""))
    value = str(member.value or "")
    told = value and "class-attribute" in member.labels and len(value) < MAX_VALUE
    return (f": {note}" if note else "") + (f" = {value}" if told else "")


def _under(member: griffe.Object) -> str:
    text = _text(member)
    return (
        "" if not text else "\n" + "".join(f"  {line}".rstrip() + "\n" for line in text.split("\n"))
    )


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


def _signature(name: str, item: griffe.Function) -> str:
    parts, keyword = [], False
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.var_positional:
            parts.append(f"*{parameter.name}" + _annotation(parameter))
            keyword = True
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not keyword:
            parts.append("*")
            keyword = True
        default = "" if parameter.default is None else f" = {parameter.default}"
        parts.append(parameter.name + _annotation(parameter) + default)
    returns = f" -> {item.returns}" if item.returns and name == item.name else ""
    asynchronous = "async " if "async" in item.labels else ""
    return f"{asynchronous}{name}({', '.join(parts)}){returns}"


def _annotation(parameter: griffe.Parameter) -> str:
    return f": {parameter.annotation}" if parameter.annotation else ""


def _text(item: griffe.Object) -> str:
    """A docstring as Markdown: parameters as a list, code as a block."""
    if item.docstring is None:
        return ""
    names = [parameter.name for parameter in getattr(item, "parameters", ())]
    names += list(getattr(item, "members", ()))
    apart = re.sub(r"\s(?=Raises )", "\n\n", item.docstring.value.strip())
    paragraphs = re.sub(r"\n{3,}", "\n\n", apart).split("\n\n")
    return "\n\n".join(_paragraph(text, names) for text in paragraphs)


def _paragraph(text: str, names: list[str]) -> str:
    if text.startswith("    "):
        return text
    text = re.sub(r"``(.+?)``", r"`\1`", text).replace("::", ":")
    some = "|".join(map(re.escape, names)) or "(?!)"
    parts = re.split(rf"(?:^|(?<=\.)\s+)((?:{some})(?:, (?:{some}))*):\s", text, flags=re.M)
    first, *pairs = parts
    listed = (
        f"- {name}: {' '.join(about.split())}"
        for name, about in zip(*[iter(pairs)] * 2, strict=True)
    )
    return "\n".join([*([first.strip()] if first.strip() else []), *listed])


def main() -> None:
    text = render().rstrip() + "\n"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return
    known = PAGE.read_text() if PAGE.exists() else ""
    if text != known:
        names = ("docs/api.md", "from the docstrings")
        lines = difflib.unified_diff(known.splitlines(), text.splitlines(), *names, lineterm="")
        print("\n".join(lines))
        raise SystemExit("docs/api.md is out of date: run 'make api'")


if __name__ == "__main__":
    main()
