"""Writes parsers/kafka/schemas.txt from the message definitions in kafka-clients jars.

    python scripts/kafka_schemas.py kafka-clients-4.3.1.jar kafka-clients-3.9.2.jar

The newest jar comes first; of an older one only the versions are taken that no
newer one has.  Versions that a jar calls unstable are left out, but for the
newest jar's.

The table has a block per message and range of versions::

    0 Produce request 3-13 flexible 9-13
      TransactionalId string null
      TopicData []
        Name string 3-12 topic

Fields are indented below their struct. Behind name and type stand, where they
are not the block's: versions; ``null`` (with versions) if it may be null; ``tag``
and its number; ``default`` and a value; ``topic`` for a topic's name, and
``topicid`` for its id.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "parsers" / "kafka" / "schemas.txt"
LAST = 32767

Versions = tuple[int, int]
Json = dict[str, Any]

HEADER = """\
# Made by scripts/kafka_schemas.py from the message definitions of Apache Kafka {releases}
# (Apache License 2.0). Do not edit.
"""


def load(jar: Path) -> list[Json]:
    """The message definitions in `jar`."""
    with zipfile.ZipFile(jar) as archive:
        names = [n for n in archive.namelist() if re.fullmatch(r"common/message/\w+\.json", n)]
        return [json.loads(_uncommented(archive.read(name).decode())) for name in names]


def _uncommented(text: str) -> str:
    return re.sub(r"(?m)^\s*//.*$", "", text)


def versions(text: str) -> Versions | None:
    """``"1-3"``, ``"2+"``, ``"4"`` or ``"none"`` as a range."""
    if text == "none":
        return None
    first, dash, last = text.rstrip("+").partition("-")
    if text.endswith("+"):
        return int(first), LAST
    return int(first), int(last if dash else first)


def common(a: Versions | None, b: Versions | None) -> Versions | None:
    """The versions in both ranges."""
    if a is None or b is None:
        return None
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else None


def show(range_: Versions) -> str:
    return f"{range_[0]}" if range_[0] == range_[1] else f"{range_[0]}-{range_[1]}"


def fields(items: Sequence[Json], structs: dict[str, Json], within: Versions) -> Iterator[str]:
    """The lines of `items` in the versions `within`, structs inlined."""
    for item in items:
        here = common(versions(item["versions"]), within)
        if here is None:
            continue
        words = [item["name"], _type(item["type"])]
        if here != within:
            words.append(show(here))
        null = common(versions(item.get("nullableVersions", "none")), here)
        if null:
            words += ["null"] if null == here else ["null", show(null)]
        if common(versions(item.get("taggedVersions", "none")), here):
            words += ["tag", str(item["tag"])]
        default = str(item.get("default", ""))
        if default not in ("", "0", "false", '""'):
            words += ["default", str(int(default, 0)) if default[:2] == "0x" else default]
        if item.get("entityType") == "topicName":
            words.append("topic")
        elif item["name"] == "TopicId":
            words.append("topicid")
        yield " ".join(words)
        below = item.get("fields") or structs.get(item["type"].removeprefix("[]"), {}).get("fields")
        for line in fields(below or (), structs, here):
            yield f"  {line}"


def _type(text: str) -> str:
    """A field's type; a struct's name is of no interest."""
    base = text.removeprefix("[]")
    struct = base[0].isupper()
    return ("[]" if text.startswith("[]") else "") + ("" if struct else base) or "{}"


def blocks(jars: Sequence[Path]) -> list[tuple[int, str, int, str]]:
    """(API key, kind, first version, text) of each block."""
    found: list[tuple[int, str, int, str]] = []
    names: dict[int, str] = {}
    lowest: dict[int, int] = {}
    for age, jar in enumerate(jars):
        messages = [m for m in load(jar) if m["type"] in ("request", "response")]
        requests = {m["apiKey"]: m for m in messages if m["type"] == "request"}
        before = dict(lowest)
        for message in messages:
            key = message["apiKey"]
            range_ = versions(message["validVersions"])
            if range_ is None:
                continue
            low, high = range_
            if age:
                high = min(high, before.get(key, LAST) - 1)
                unstable = requests[key].get("latestVersionUnstable") and high == range_[1]
                high -= bool(unstable)
            if low > high:
                continue
            name = names.setdefault(key, requests[key]["name"].removesuffix("Request"))
            lowest[key] = min(low, lowest.get(key, LAST))
            structs = {struct["name"]: struct for struct in message.get("commonStructs", ())}
            flexible = common(versions(message.get("flexibleVersions", "none")), (low, high))
            head = f"{key} {name} {message['type']} {show((low, high))}"
            if flexible:
                head += f" flexible {show(flexible)}"
            body = [f"  {line}" for line in fields(message["fields"], structs, (low, high))]
            found.append((key, message["type"], low, "\n".join([head, *body])))
    return sorted(found)


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    jars = [Path(argument) for argument in arguments]
    releases = " and ".join(jar.stem.removeprefix("kafka-clients-") for jar in jars)
    text = HEADER.format(releases=releases) + "\n".join(block[-1] for block in blocks(jars))
    TARGET.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
