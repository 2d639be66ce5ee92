"""cassandra rules: which actions, on which tables.

A rule without ``query_action`` is about every action; one without
``query_table`` about every table.  What touches no table has the empty name, so
that a rule for tables alone does not let roles be created.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from parsers.cassandra.actions import GROUPS, WITH_TABLE, WITHOUT_TABLE
from proxylib import Exact, L7Rule, Matcher, Properties, Regex, RuleError


class Rule(L7Rule):
    """One cassandra rule of a policy."""

    query_action = Exact(*WITH_TABLE, *WITHOUT_TABLE, *GROUPS, doc="what the statement does")
    query_table = Regex(doc="searched for in <keyspace>.<table>, or in a keyspace's name")

    def check(self) -> None:
        action = self.pairs.get("query_action", "")
        if "query_table" in self.pairs and not set(GROUPS.get(action, (action,))) <= _TABLES:
            raise RuleError("query_table", self.pairs["query_table"], f"{action} has no table")

    @classmethod
    def compile(cls, rules: Sequence[Self], *, deny: bool = False) -> Matcher:
        expanded = [single for rule in rules for single in rule._single_actions()]
        matcher = super().compile(expanded, deny=deny)
        if not deny:
            return matcher

        def denied(message: Properties) -> bool:
            # A statement that cannot be read may be what is denied.
            return not message["query_action"] or matcher(message)

        return denied

    def _single_actions(self) -> list[Self]:
        """The same for each action that a group stands for."""
        actions = GROUPS.get(self.pairs.get("query_action", ""))
        if actions is None:
            return [self]
        return [type(self)({**self.pairs, "query_action": action}) for action in actions]


_TABLES = {*WITH_TABLE, ""}
