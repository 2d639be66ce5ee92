"""What parser authors test with: a connection under a parser, without Envoy or sockets.

`proxylib.testing.strategies` is apart because it needs the package hypothesis.
"""

from proxylib.testing.checks import check_parser
from proxylib.testing.chunking import Outcome, byte_by_byte, check_chunking, play
from proxylib.testing.dialogue import check_dialogue
from proxylib.testing.host import Host, HostClosed, LogRecord, policy_map

__all__ = [
    "Host",
    "HostClosed",
    "LogRecord",
    "Outcome",
    "byte_by_byte",
    "check_chunking",
    "check_dialogue",
    "check_parser",
    "play",
    "policy_map",
]
