"""The per-node daemon, ``proxylib agent``: what it is told, what it keeps, what it runs.

config (one model, four sources) -> store (state on disk) -> repository (documents and
endpoints, changed one at a time) and folder (the watched policy directory) -> daemon,
which holds these together with the control server, the access log and the REST API.
"""
