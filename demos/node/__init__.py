"""Stories of a whole node: real network namespaces, clients that know only a server's address.

``python -m demos.node`` (as root) tells them all, ``python -m demos.node nginx`` one of them.
"""
