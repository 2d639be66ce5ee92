"""Runnable stories, each of which is also a test: ``python -m demos`` tells them all.

A story starts a real Envoy with `node.run.Proxy`, talks through it as clients
would, and compares what happened with what had to happen.
"""
