"""What parser authors test with: a connection under a parser, without Envoy or sockets."""

from proxylib.testing.host import Host, HostClosed, LogRecord, policy_map

__all__ = ["Host", "HostClosed", "LogRecord", "policy_map"]
