"""The CNI plugin ``proxylib-cni``: a container runtime's way to the agent.

protocol.py reads what a runtime asks and writes what it is answered; plugin.py does it, by the
agent's REST API.  A runtime waits for every container's plugin, so neither imports more than a
request over a Unix socket needs.
"""
