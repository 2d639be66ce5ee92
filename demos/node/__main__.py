"""``python -m demos.node [STORY...]``: a node and its eBPF redirection, told in three stories.

Exit status 0 only if all is as expected.
"""

from __future__ import annotations

import time

import click

from demos.namespaces import check
from demos.servers.maven import Missing
from demos.stage import Stage
from node.errors import NodeError
from proxylib.errors import ProxylibError

STORIES = ("nginx", "memcached", "cassandra")


@click.command()
@click.argument("stories", nargs=-1, type=click.Choice(STORIES))
def main(stories: tuple[str, ...]) -> None:
    """Tell STORIES, or all of them. Needs root, for network namespaces and eBPF."""
    started = time.monotonic()
    stage = Stage()
    try:
        check()
        for story in stories or STORIES:
            _tell(story, stage)
    except (NodeError, ProxylibError) as error:
        raise click.ClickException(str(error)) from error
    status = stage.finish()
    click.echo(f"({time.monotonic() - started:.1f} s)")
    raise SystemExit(status)


def _tell(story: str, stage: Stage) -> None:
    """One of them; without Java, the story that needs it is left out, and said to be."""
    # Not before it is told: drivers of other stories may not be there.
    from importlib import import_module

    try:
        import_module(f"demos.node.{story}").tell(stage)
    except Missing as error:
        stage.say(click.style(f"left out: {error}", fg="yellow"))


if __name__ == "__main__":
    main()
