"""Every bound of the engine, with its reason.

Passing one is a parser error (the connection closes, the log says which), never
memory growth.  The C side (native/) takes the same numbers from here at start.
"""

from __future__ import annotations

MAX_LINE = 4096
"""Default longest line of a line-framed protocol, bytes, delimiter included.
HTTP servers' defaults for one header line are 4-16 KiB."""

MAX_FRAME = 1 << 20
"""Default longest frame a framed parser may ask to see whole, bytes."""

MAX_HELD = 16 << 20
"""Most bytes withheld per connection and direction while a parser waits for
MORE. A parser that needs larger frames passes their tails unseen (PASS beyond
the data) instead."""

MAX_INJECT = 1 << 20
"""Most bytes waiting in one inject buffer: error replies to requests that a
client has pipelined without reading any answer."""

MAX_OP_BYTES = 1 << 62
"""Largest n of an op. Leaves room to add two of them in 64 bits."""

WINDOW = 16 << 10
"""Most bytes handed to a parser at once while it has not asked for more: copying
a large value that the parser then passes unseen would be the cost of large
transfers."""

MAX_LOG_VALUE = 4096
"""Longest value of one access-log field, bytes; longer ones are cut and end in '...'."""

MAX_LOG_ENTRY = 32 << 10
"""Largest encoded access-log entry, bytes; fields that do not fit are left out."""

LOG_QUEUE = 4 << 20
"""Bytes of encoded entries that wait for a slow or absent log consumer; what
comes beyond is dropped, counted, and reported in the stream."""

MAX_PANIC_TEXT = 1024
"""Longest text of a parser's exception in the log."""

TIME_BUDGET = 0.1
"""Default longest call into a parser, seconds. A call sees WINDOW bytes and takes some
microseconds per message, a few milliseconds at the worst; a tenth of a second is what
people begin to notice, and the most that one connection may hold the others up."""

MEMORY_BUDGET = 32 << 20
"""Default most that a connection's parser may hold, bytes: a frame of MAX_HELD, and as
much for what it made of it."""

MAX_QUESTIONS = 10_000
"""Questions of parsers that wait for an answer at a time, in a process."""

BREAKER_PANICS = 100
BREAKER_PERIOD = 10.0
"""A parser that panics more often than BREAKER_PANICS in BREAKER_PERIOD seconds is taken
out: one client's odd request does not do that, a bug that meets everybody does."""

BREAKER_PAUSE = 5.0
MAX_BREAKER_PAUSE = 300.0
"""Seconds that a parser stays out before it is tried again; doubled by each failure."""

WORKER_PAUSE = 0.1
MAX_WORKER_PAUSE = 10.0
"""Seconds before the process of an isolated parser is started again; doubled by each one
that does not live for longer than MAX_WORKER_PAUSE."""

MAX_LEAVING = 16
"""Processes of old code that are left with connections at a time, of one listener; each
has a Python of its own, some ten MiB. No further reload is accepted then."""

WORKER_MEMORY = 1 << 30
"""Address space that such a process may take beyond what it has at its start, bytes; its
parser gets a MemoryError then. Threads' stacks and fragments count, hence the room."""
