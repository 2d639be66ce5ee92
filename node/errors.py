"""What goes wrong for a user: the text is the whole message, no traceback is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    # What only speaks to an agent does not wait for the framework to load.
    from proxylib.errors import ProxylibError

_PROXYLIB_ERROR_STATUS = 2
"""Documents and parser files that are wrong are the user's input."""


class NodeError(Exception):
    """Says what is wrong, where, and what to do."""

    exit_status: ClassVar[int] = 1


class UsageError(NodeError):
    """The user's input is wrong: an address, a parser's name, a document."""

    exit_status = 2


class SetupError(NodeError):
    """The machine lacks something: Envoy, the library, a free port."""

    exit_status = 3


class EnvoyDied(NodeError):
    """Envoy ended by itself while it should serve."""

    exit_status = 4


def exit_status(error: NodeError | ProxylibError) -> int:
    """The command's exit status for `error`."""
    return error.exit_status if isinstance(error, NodeError) else _PROXYLIB_ERROR_STATUS
