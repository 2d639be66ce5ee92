"""What a CQL statement does: the values of ``query_action``, as tables."""

from __future__ import annotations

from collections.abc import Mapping

WITH_TABLE = (
    "select",
    "insert",
    "update",
    "delete",
    "create-table",
    "alter-table",
    "drop-table",
    "truncate-table",
    "use",
    "create-keyspace",
    "alter-keyspace",
    "drop-keyspace",
)
"""Actions on one table, or (the last four) on a keyspace, whose name then stands for
the table."""

WITHOUT_TABLE = (
    "create-index",
    "drop-index",
    "create-materialized-view",
    "alter-materialized-view",
    "drop-materialized-view",
    "create-type",
    "alter-type",
    "drop-type",
    "create-function",
    "drop-function",
    "create-aggregate",
    "drop-aggregate",
    "create-trigger",
    "drop-trigger",
    "create-role",
    "alter-role",
    "drop-role",
    "create-user",
    "alter-user",
    "drop-user",
    "grant-role",
    "revoke-role",
    "grant-permission",
    "revoke-permission",
    "list-roles",
    "list-users",
    "list-superusers",
    "list-permissions",
    "add-identity",
    "drop-identity",
    "describe",
)
"""Actions that a rule cannot restrict to tables."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "truncate": ("truncate-table",),
    "grant": ("grant-role", "grant-permission"),
    "revoke": ("revoke-role", "revoke-permission"),
}
"""Other names that a rule may use, and the actions they stand for."""
