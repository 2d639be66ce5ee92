"""What goes wrong for a user: the text is the whole message, no traceback is shown."""

from __future__ import annotations

from typing import ClassVar


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
