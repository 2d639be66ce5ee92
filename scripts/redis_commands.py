"""Writes parsers/redis/commands.txt from what a running Redis says of its commands.

    python scripts/redis_commands.py 127.0.0.1:6379

The table has a line per command and subcommand::

    MSET write,string,slow 1..-1/2
    CONFIG|GET admin,slow,dangerous

the name, its ACL categories, and where its keys are among the arguments (the name is
0): ``1`` a key, ``1..-1`` keys to the end (``/2``: every other), ``#2`` the number of
keys, which follow it, ``?`` somewhere that positions do not tell.  A name that ends in
``|`` has subcommands.

Source: the reply of COMMAND, with its key specifications (Redis 7.0 and later).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

TARGET = Path(__file__).parents[1] / "parsers" / "redis" / "commands.txt"

HEADER = """\
# Made by scripts/redis_commands.py from the COMMAND reply of Redis {version}. Do not edit.
"""


def pairs(flat: list[Any]) -> dict[str, Any]:
    """RESP2's flat list of keys and values as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def position(spec: dict[str, Any]) -> str:
    """One key specification as the table has it; "" if it is about no key."""
    if "not_key" in spec["flags"]:
        return ""
    begin, find = pairs(spec["begin_search"]), pairs(spec["find_keys"])
    if begin["type"] != "index" or find["type"] == "unknown" or "incomplete" in spec["flags"]:
        return "?"
    index, how = pairs(begin["spec"])["index"], pairs(find["spec"])
    if find["type"] == "keynum":
        simple = (how["keynumidx"], how["firstkey"], how["keystep"]) == (0, 1, 1)
        return f"#{index}" if simple else "?"
    if how["limit"] > 1:
        return "?"
    last, step = how["lastkey"], how["keystep"]
    if last == 0:
        return str(index)
    end = last if last < 0 else index + last
    return f"{index}..{end}" + (f"/{step}" if step > 1 else "")


def lines(commands: list[list[Any]]) -> Iterator[str]:
    """The table's lines for `commands` and their subcommands."""
    for command in commands:
        name, categories, specs, below = command[0], command[6], command[8], command[9]
        categories = ",".join(category.removeprefix("@") for category in categories)
        places = [place for spec in specs if (place := position(pairs(spec)))]
        mark = "|" if below else ""
        yield " ".join([name.upper() + mark, categories, *dict.fromkeys(places)])
        yield from lines(below)


def table(client: Redis) -> str:
    """The table of the server behind `client`, which speaks RESP2."""
    version = client.info("server")["redis_version"]
    client.response_callbacks.clear()
    commands = client.execute_command("COMMAND")
    return HEADER.format(version=version) + "\n".join(sorted(lines(_text(commands)))) + "\n"


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def main(address: str) -> None:
    """Ask the server at `address`, and write the table."""
    host, _, port = address.rpartition(":")
    with Redis(host, int(port), protocol=2) as client:
        TARGET.write_text(table(client))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/redis_commands.py HOST:PORT")
    main(sys.argv[1])
