"""The control server: from policy documents to what the data path enforces.

source (YAML with places) -> shape, model, documents (what a policy says) and
endpoints (who there is) -> labels, identity -> compilation -> stream, server
(xDS on a Unix socket).  control.ControlServer puts them together.
"""
