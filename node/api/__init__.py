"""The agent's REST API, on a Unix socket: paths and shapes, no policy logic.

models (what goes over the wire) -> problems (errors as RFC 9457 has them) -> routes
(one module per subject) -> app (all of it, with its bounds) -> server (the socket).
"""
