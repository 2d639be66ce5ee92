"""``proxylib parser``."""

from __future__ import annotations

from node.cli import LazyGroup, command_group

command: LazyGroup = command_group(
    "parser",
    {
        "list": ("node.commands.parser_list", "Which parsers can be named."),
        "describe": ("node.commands.parser_describe", "What one parser is, and its rule keys."),
        "new": ("node.commands.parser_new", "Begin a parser of your own."),
        "reload": ("node.commands.parser_reload", "New code for a running parser."),
        "status": ("node.commands.parser_status", "The parsers of a running proxy."),
        "debug": ("node.commands.parser_debug", "Be there when a parser reaches a breakpoint."),
        "profile": ("node.commands.parser_profile", "Where a parser's time goes."),
        "test": ("node.commands.parser_test", "What every parser must pass, and its own tests."),
    },
    "Parsers: those that are installed, and those that you write.",
)
