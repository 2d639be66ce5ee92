"""The table of commands: made from a server, and what it says of some."""

from __future__ import annotations

from parsers.redis.commands import COMMANDS, CONTAINERS, Place, command_of, find


def test_the_table_has_redis_7() -> None:
    assert len(COMMANDS) == 366
    assert {b"CONFIG", b"CLIENT", b"XGROUP"} <= CONTAINERS
    assert find(b"MSET").places == (Place(1, -1, 2),)
    assert find(b"EVAL").places == (Place(2, 2, 1, True),)
    assert find(b"SORT").elsewhere
    assert not find(b"SPUBLISH").places  # a channel is no key


def test_every_command_with_a_category_that_redis_has() -> None:
    assert all(command.categories & {"fast", "slow"} for command in COMMANDS.values())


def test_subcommands_are_named_as_acls_name_them() -> None:
    assert command_of([b"config", b"get"]).name == b"CONFIG|GET"
    assert command_of([b"CONFIG"]).name == b"CONFIG"
    assert not command_of([b"config", b"nosuch"]).known
    assert not command_of([b"config|get", b"x"]).known
    assert command_of([b"GET", b"x"]).name == b"GET"
