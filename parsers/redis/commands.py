"""Redis's commands: their ACL categories and where their keys are, read from commands.txt.

scripts/redis_commands.py makes the table from a real server and tells its form.  What
the table does not know (a module's command, one of a later Redis) is not an error: such
a `Command` has no category, and its keys are hidden.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

_PLACE = re.compile(r"(#?)(\d+)(?:\.\.(-?\d+))?(?:/(\d+))?")


class Place(NamedTuple):
    """Where keys are among the arguments; the name of the command is argument 0.

    counted: at `first` stands how many keys follow it, and `last` means nothing.
    last: the last key's place, or counted from the end if negative.
    """

    first: int
    last: int
    step: int = 1
    counted: bool = False


class Command(NamedTuple):
    """One command or subcommand.

    name: upper-case; of a subcommand as Redis's ACLs write it, ``CONFIG|GET``.
    elsewhere: it has keys that `places` do not tell.
    known: the table has it.
    """

    name: bytes
    categories: frozenset[str] = frozenset()
    places: tuple[Place, ...] = ()
    elsewhere: bool = False
    known: bool = True

    @property
    def container(self) -> bytes:
        """The command that this is a subcommand of; b"" if it is none."""
        return self.name.partition(b"|")[0] if b"|" in self.name else b""

    @property
    def script(self) -> bool:
        """Whether it runs code, which need not keep to the keys that it is given."""
        return "scripting" in self.categories and bool(self.places)

    @property
    def keyless(self) -> bool:
        """Whether it certainly has no keys."""
        return self.known and not self.places and not self.elsewhere


def _place(text: str) -> Place:
    match = _PLACE.fullmatch(text)
    assert match is not None, text
    counted, first, last, step = match.groups()
    return Place(int(first), int(last or first), int(step or 1), bool(counted))


def _read() -> tuple[dict[bytes, Command], frozenset[bytes]]:
    commands, containers = {}, set()
    for line in files(__package__).joinpath("commands.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        word, categories, *places = line.split(" ")
        name = word.encode()
        if word.endswith("|"):
            name = name[:-1]
            containers.add(name)
        commands[name] = Command(
            name,
            frozenset(categories.split(",")),
            tuple(_place(place) for place in places if place != "?"),
            "?" in places,
        )
    return commands, frozenset(containers)


COMMANDS, CONTAINERS = _read()
"""By name; and the names that have subcommands."""

CATEGORIES = frozenset().union(*(command.categories for command in COMMANDS.values()))


def find(name: bytes) -> Command:
    """The command called `name`, upper-case."""
    return COMMANDS.get(name) or Command(name, elsewhere=True, known=False)


def command_of(args: list[bytes]) -> Command:
    """The command that a request names, read from its first one or two arguments."""
    name = args[0].upper()
    if name in CONTAINERS and len(args) > 1:
        return find(name + b"|" + args[1].upper())
    # A name with the separator in it would be taken for a subcommand's.
    return find(name.replace(b"|", b"\\x7c"))
