"""``proxylib gen-config``."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from node.address import Address
from node.errors import UsageError
from node.parsers import choose_parser

HEADER = """\
# Envoy's whole configuration for the parser {parser}, as 'proxylib run' would write it.
#
# To run it, in three terminals (POLICY.yaml, ENDPOINTS.yaml: see docs/policy.md):
#   proxylib accesslog {folder}/access_log.sock
#   proxylib policy serve POLICY.yaml --endpoints ENDPOINTS.yaml --socket {folder}/xds.sock
#   export ENVOY_DYNAMIC_MODULES_SEARCH_PATH="$(dirname "$(proxylib lib-path)")"
#   envoy -c THIS.yaml --concurrency 1
#
# Until the policy server has answered, every connection is closed.
"""


def _address(ctx: click.Context, param: click.Parameter, value: str) -> Address:
    try:
        return Address.parse(value).resolve()
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


class _Readable(yaml.SafeDumper):
    """Writes what has several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")


_Readable.add_representer(str, _text)


@click.command("gen-config")
@click.argument("parser")
@click.option("--listen", default="127.0.0.1:4000", show_default=True, callback=_address)
@click.option("--upstream", default="127.0.0.1:4040", show_default=True, callback=_address)
@click.option(
    "--folder",
    default=Path("/run/proxylib"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the sockets are: xds.sock, access_log.sock, admin.sock.",
)
@click.option("--egress", is_flag=True, help="Enforce the clients' egress rules.")
def command(parser: str, listen: Address, upstream: Address, folder: Path, egress: bool) -> None:
    """Print a complete Envoy configuration for PARSER, to read and to run by hand."""
    from betterproto2 import Casing

    from node import bootstrap

    choice = choose_parser(parser)
    document = bootstrap.build(
        bootstrap.BootstrapConfig(
            bootstrap.FilterConfig(
                parser=choice.name,
                xds_path=folder / "xds.sock",
                access_log_path=folder / "access_log.sock",
                node_id=f"static-{choice.name}",
                ingress=not egress,
                destination=str(upstream),
                parser_modules=choice.modules,
            ),
            listen=listen,
            upstream=upstream,
            admin=folder / "admin.sock",
        )
    ).to_dict(casing=Casing.SNAKE)
    text = yaml.dump(document, Dumper=_Readable, sort_keys=False, width=4096)
    click.echo(HEADER.format(parser=choice.name, folder=folder) + "\n" + text, nl=False)
