"""``python -m demos``: the main job, told in three stories.

A stock Envoy judges real memcached and r2d2 traffic with Python parsers, and one
parser that panics hurts nobody.  Exit status 0 only if all is as expected.
"""

from __future__ import annotations

import sys
import time

import click

from demos import memcached, panic, r2d2
from demos.stage import run_stories

STORIES = (memcached, r2d2, panic)


def main() -> int:
    started = time.monotonic()
    status = run_stories(*(story.tell for story in STORIES))
    click.echo(f"({time.monotonic() - started:.1f} s)")
    return status


if __name__ == "__main__":
    sys.exit(main())
