"""The parsers of this distribution, one module or package per protocol.

Each is found by its entry point (group ``proxylib.parsers``) and imports only
proxylib's public API, as a third party's would.
"""
