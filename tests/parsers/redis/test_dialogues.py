"""What each side says and what comes of it: denials, transactions, subscriptions."""

# ruff: noqa: E501 (a script has a line for what is one burst)
from __future__ import annotations

import pytest

from proxylib.testing import check_dialogue

RULES = [
    {"category": "read", "keyPrefix": "app:"},
    {"category": "write", "keyPrefix": "app:"},
    {"category": "transaction"},
    {"category": "connection"},
    {"category": "pubsub"},
]


def check(script: str, rules: list[dict[str, str]] | None = RULES) -> None:
    __tracebackhide__ = True
    check_dialogue("redis", script, rules)


def test_a_denial_stands_among_pipelined_replies() -> None:
    check(r"""
        client: GET app:a\r\nGET secret\r\nGET app:b\r\n
          server gets: GET app:a\r\nGET app:b\r\n
          log: Request command=GET keys=app:a
          log: Denied command=GET keys=secret
          log: Request command=GET keys=app:b
        server: $1\r\nx\r\n:7\r\n
          client gets: $1\r\nx\r\n-NOPERM access denied by policy\r\n:7\r\n
          log: Response command=GET status=OK
          log: Response command=GET status=OK
        """)


def test_a_denial_with_nothing_owed_is_answered_at_once() -> None:
    check(r"""
        client: *2\r\n$3\r\nGET\r\n$6\r\nsecret\r\n*2\r\n$3\r\nget\r\n$5\r\napp:a\r\n
          server gets: *2\r\n$3\r\nget\r\n$5\r\napp:a\r\n
          client gets: -NOPERM access denied by policy\r\n
          log: Denied command=GET keys=secret
          log: Request command=GET keys=app:a
        server: $-1\r\n
          client gets: $-1\r\n
          log: Response command=GET status=NIL
        """)


def test_a_denial_in_a_transaction_fails_it() -> None:
    check(r"""
        client: MULTI\r\nSET app:a 1\r\nSET secret 2\r\nEXEC\r\nGET app:a\r\n
          server gets: MULTI\r\nSET app:a 1\r\n*1\r\n$3\r\nGET\r\nEXEC\r\nGET app:a\r\n
          log: Request command=MULTI keys=
          log: Request command=SET keys=app:a
          log: Denied command=SET keys=secret
          log: Request command=EXEC keys=
          log: Request command=GET keys=app:a
        server: +OK\r\n+QUEUED\r\n-ERR wrong number of arguments for 'get' command\r\n
          client gets: +OK\r\n+QUEUED\r\n-NOPERM access denied by policy\r\n
          log: Response command=MULTI status=OK
          log: Response command=SET status=QUEUED
        server: -EXECABORT Transaction discarded.\r\n$-1\r\n
          client gets: -EXECABORT Transaction discarded.\r\n$-1\r\n
          log: Response command=EXEC status=EXECABORT
          log: Response command=GET status=NIL
        """)


def test_what_the_server_should_have_refused_closes() -> None:
    check(r"""
        client: MULTI\r\nSET secret 2\r\n
          server gets: MULTI\r\n*1\r\n$3\r\nGET\r\n
          log: Request command=MULTI keys=
          log: Denied command=SET keys=secret
        server: +OK\r\n+QUEUED\r\n
          client gets: +OK\r\n
          log: Response command=MULTI status=OK
          log: Denied status=Parser error: the server did not refuse what stands for a denied request
          closed
        """)


def test_no_subscription_in_a_transaction() -> None:
    check(r"""
        client: MULTI\r\nSUBSCRIBE x\r\n
          server gets: MULTI\r\n*1\r\n$3\r\nGET\r\n
          log: Request command=MULTI keys=
          log: Denied command=SUBSCRIBE keys= status=not in a transaction: replies could not be told apart
        """)


def test_subscriptions_of_resp2() -> None:
    check(r"""
        client: SUBSCRIBE a b\r\nPING\r\nGET secret\r\nUNSUBSCRIBE\r\nPING\r\n
          server gets: SUBSCRIBE a b\r\nPING\r\nUNSUBSCRIBE\r\nPING\r\n
          log: Request command=SUBSCRIBE keys=
          log: Request command=PING keys=
          log: Denied command=GET keys=secret
          log: Request command=UNSUBSCRIBE keys=
          log: Request command=PING keys=
        server: *3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n
          client gets: *3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n
        # a message between the two confirmations
        server: *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n
          client gets: *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n
        server: *3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n
          client gets: *3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n-NOPERM access denied by policy\r\n
          log: Response command=SUBSCRIBE status=OK
          log: Response command=PING status=OK
        server: *3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n+PONG\r\n
          client gets: *3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n+PONG\r\n
          log: Response command=UNSUBSCRIBE status=OK
          log: Response command=PING status=PONG
        """)


def test_unsubscribing_from_nothing_is_answered_once() -> None:
    check(r"""
        client: UNSUBSCRIBE\r\nPING\r\n
          server gets: UNSUBSCRIBE\r\nPING\r\n
          log: Request command=UNSUBSCRIBE keys=
          log: Request command=PING keys=
        server: *3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n+PONG\r\n
          client gets: *3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n+PONG\r\n
          log: Response command=UNSUBSCRIBE status=OK
          log: Response command=PING status=PONG
        """)


def test_an_array_that_looks_like_a_message_is_a_reply_where_nothing_is_subscribed() -> None:
    check(r"""
        client: LRANGE app:l 0 -1\r\nGET secret\r\n
          server gets: LRANGE app:l 0 -1\r\n
          log: Request command=LRANGE keys=app:l
          log: Denied command=GET keys=secret
        server: *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n
          client gets: *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n-NOPERM access denied by policy\r\n
          log: Response command=LRANGE status=OK
        """)


def test_resp3_pushes_answer_nothing() -> None:
    check(r"""
        client: HELLO 3 AUTH default hunter2\r\nSUBSCRIBE a\r\nLRANGE app:l 0 -1\r\nGET secret\r\n
          server gets: HELLO 3 AUTH default hunter2\r\nSUBSCRIBE a\r\nLRANGE app:l 0 -1\r\n
          log: Request command=HELLO keys=
          log: Request command=SUBSCRIBE keys=
          log: Request command=LRANGE keys=app:l
          log: Denied command=GET keys=secret
        server: %2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n
          client gets: %2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n
          log: Response command=HELLO status=OK
          log: Response command=SUBSCRIBE status=OK
        server: >3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n
          client gets: >3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n-NOPERM access denied by policy\r\n
          log: Response command=LRANGE status=OK
        server: >2\r\n$10\r\ninvalidate\r\n_\r\n
          client gets: >2\r\n$10\r\ninvalidate\r\n_\r\n
        """)


def test_a_denial_waits_for_the_end_of_a_push() -> None:
    check(r"""
        client: HELLO 3\r\n
          server gets: HELLO 3\r\n
          log: Request command=HELLO keys=
        server: %0\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$9\r\n1234
          client gets: %0\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$9\r\n1234
          log: Response command=HELLO status=OK
        client: GET secret\r\n
          log: Denied command=GET keys=secret
        server: 56789\r\n
          client gets: 56789\r\n-NOPERM access denied by policy\r\n
        """)


def test_every_type_of_resp3_and_what_nests() -> None:
    check(r"""
        client: GET app:1\r\nGET app:2\r\nGET app:3\r\nGET secret\r\n
          server gets: GET app:1\r\nGET app:2\r\nGET app:3\r\n
          log: Request command=GET keys=app:1
          log: Request command=GET keys=app:2
          log: Request command=GET keys=app:3
          log: Denied command=GET keys=secret
        server: *8\r\n,1.5\r\n#t\r\n_\r\n(123\r\n=5\r\ntxt:x\r\n~1\r\n:1\r\n%1\r\n+a\r\n*0\r\n!3\r\nERR\r\n
          client gets: *8\r\n,1.5\r\n#t\r\n_\r\n(123\r\n=5\r\ntxt:x\r\n~1\r\n:1\r\n%1\r\n+a\r\n*0\r\n!3\r\nERR\r\n
          log: Response command=GET status=OK
        server: |1\r\n+ttl\r\n:5\r\n*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n
          client gets: |1\r\n+ttl\r\n:5\r\n*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n
          log: Response command=GET status=OK
        server: -WRONGTYPE Operation against a key\r\n
          client gets: -WRONGTYPE Operation against a key\r\n-NOPERM access denied by policy\r\n
          log: Response command=GET status=WRONGTYPE
        """)


def test_monitor_needs_its_own_rule_and_then_only_quit() -> None:
    check(
        r"""
        client: MONITOR\r\n
          client gets: -NOPERM access denied by policy\r\n
          log: Denied command=MONITOR keys=
        """,
        [{}],
    )
    check(
        r"""
        client: MONITOR\r\n
          server gets: MONITOR\r\n
          log: Request command=MONITOR keys=
        server: +OK\r\n+1.2 [0 1] "PING"\r\n
          client gets: +OK\r\n+1.2 [0 1] "PING"\r\n
          log: Response command=MONITOR status=OK
        client: PING\r\nQUIT\r\n
          server gets: QUIT\r\n
          client gets: -NOPERM access denied by policy\r\n
          log: Denied command=PING keys= status=not while monitoring: replies could not be told apart
          log: Request command=QUIT keys=
        """,
        [{}, {"command": "MONITOR"}],
    )


@pytest.mark.parametrize("command", ["CLIENT REPLY OFF", "client reply skip", "SYNC", "PSYNC ? -1"])
def test_what_no_policy_allows(command: str) -> None:
    name = "CLIENT|REPLY" if "reply" in command.lower() else command.split(maxsplit=1)[0]
    why = "replies that are left out cannot be paired with their requests"
    if name != "CLIENT|REPLY":
        why = "what replication sends cannot be judged"
    check(
        rf"""
        client: {command}\r\n
          client gets: -NOPERM access denied by policy\r\n
          log: Denied command={name} keys= status={why}
        """,
        None,
    )


def test_large_arguments_pass_or_vanish_unread() -> None:
    check(r"""
        client: *3\r\n$3\r\nSET\r\n$5\r\napp:a\r\n$100000\r\nGET sec
          server gets: *3\r\n$3\r\nSET\r\n$5\r\napp:a\r\n$100000\r\nGET sec
          log: Request command=SET keys=app:a
        client: ret\r\n
          server gets: ret\r\n
        """)
    check(r"""
        client: *3\r\n$3\r\nSET\r\n$6\r\nsecret\r\n$11\r\nGET a
          client gets: -NOPERM access denied by policy\r\n
          log: Denied command=SET keys=secret
        client: pp:a\r\n\r\nGET app:b\r\n
          server gets: GET app:b\r\n
          log: Request command=GET keys=app:b
        """)


def test_quotes_of_inline_commands() -> None:
    check(r"""
        client: get "app:\\x41 b"\r\n\r\n  \r\nGET 'app:'\nget "secret"\r\n
          server gets: get "app:\\x41 b"\r\n\r\n  \r\nGET 'app:'\n
          log: Request command=GET keys=app:A b
          log: Request command=GET keys=app:
          log: Denied command=GET keys=secret
        """)


def test_an_error_to_no_request_passes() -> None:
    check(r"""
        server: -ERR max number of clients reached\r\n
          client gets: -ERR max number of clients reached\r\n
        """)
