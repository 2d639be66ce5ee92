"""``proxylib lib-path``."""

from __future__ import annotations

import click

from node.envoy import find_library


@click.command("lib-path")
def command() -> None:
    """Print the path of the shared library, libproxylib.so.

    An Envoy that you start yourself finds it by its folder, in the environment
    variable ENVOY_DYNAMIC_MODULES_SEARCH_PATH; a host of the proxylib C ABI opens
    it by this path.
    """
    click.echo(find_library())
