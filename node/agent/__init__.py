"""The per-node daemon, ``proxylib agent``: what it is told, what it keeps, what it runs.

config (one model, four sources) -> store (state on disk) -> repository (documents and
endpoints, changed one at a time), folder (the watched policy directory) and redirects
(parsers' listeners and their proxy ports) -> daemon,
which holds these together with the control server, the access log and the REST API.
"""
