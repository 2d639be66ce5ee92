"""The command ``proxylib``.

Each command is a module in commands/, imported only when it is called: a command
that prints a path must not wait for gRPC.  What goes wrong for a user is one
message on stderr and an exit status (errors.py), never a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from node.errors import NodeError, exit_status
from proxylib.errors import ProxylibError


class LazyGroup(click.Group):
    """A group whose commands are named in a table: name -> module that has `command`."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, _ = self._table[cmd_name]
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self._table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (NodeError, ProxylibError) as error:
            from node.tables import safe

            prefix = click.style("proxylib: error: ", fg="red", bold=True)
            # What others have called something is no command for a terminal.
            text = "\n".join(map(safe, str(error).split("\n")))
            click.echo(f"{prefix}{text}", err=True)
            ctx.exit(exit_status(error))


def command_group(name: str, table: dict[str, tuple[str, str]], help_text: str) -> LazyGroup:
    """A group of commands within the command line, named in a table as LazyGroup's."""
    return LazyGroup(name, table=table, help=help_text)


@click.command(
    cls=LazyGroup,
    table={
        "run": ("node.commands.run", "Put a parser between clients and a server, now."),
        "record": ("node.commands.record", "The same, and keep what passes in files."),
        "agent": ("node.commands.agent", "The daemon of a node: policies, endpoints, REST API."),
        "accesslog": ("node.commands.accesslog", "Read the decisions that proxies log."),
        "replay": ("node.commands.replay", "Judge recordings again, off line."),
        "parser": ("node.commands.parser", "List, describe, begin and test parsers."),
        "policy": ("node.commands.policy", "Policies: check, import, trace, wait for, serve."),
        "endpoint": ("node.commands.endpoint", "The endpoints of this node."),
        "identity": ("node.commands.identity", "Security identities and their labels."),
        "ip": ("node.commands.ip", "Which identity an address has."),
        "fqdn": ("node.commands.fqdn", "What is known of DNS names."),
        "service": ("node.commands.service", "Services, for the toServices of policies."),
        "xds": ("node.commands.xds", "Who gets policies, and what they made of them."),
        "monitor": ("node.commands.monitor", "What happens on the node, as it happens."),
        "bpf": ("node.commands.bpf", "What the eBPF programs know."),
        "metrics": ("node.commands.metrics", "The agent's counters."),
        "status": ("node.commands.status", "How the agent and its parts are."),
        "gen-config": ("node.commands.gen_config", "Print an Envoy configuration to read."),
        "gen-unit": ("node.commands.gen_unit", "Print a systemd unit for the agent."),
        "lib-path": ("node.commands.lib_path", "Print where the shared library is."),
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="proxylib", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Envoy L7 extensions in Python: judge what a protocol says, by policy.

    \b
    Start with
      proxylib run r2d2 --listen 127.0.0.1:4000 --upstream 127.0.0.1:4001

    Exit status: 0 all is well; 1 the answer is "no" (a document is wrong); 2 the
    command line or its input is wrong; 3 something is missing on this machine;
    4 Envoy died.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(cli.main(arguments, prog_name="proxylib"))
