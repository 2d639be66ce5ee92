"""What keeps a parser's mistakes to its own connection; docs/sandbox.md tells the story.

`settings` is what an operator may choose, `breaker` takes a parser out that fails
again and again, `native` interrupts calls (native/guard.c), `place` finds the line of
the parser that is to blame.
"""

from proxylib.sandbox.breaker import Breaker, breaker_of
from proxylib.sandbox.native import BudgetExceeded, guarded
from proxylib.sandbox.place import describe
from proxylib.sandbox.settings import DEFAULTS, OnError, Settings, parse_settings

__all__ = [
    "DEFAULTS",
    "Breaker",
    "BudgetExceeded",
    "OnError",
    "Settings",
    "breaker_of",
    "describe",
    "guarded",
    "parse_settings",
]
