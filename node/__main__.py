"""``python -m node`` is ``proxylib``."""

from node.cli import main

main()
