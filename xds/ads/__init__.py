"""Envoy's own configuration: what its listeners and clusters are, served over ADS.

types (resource types, and the order in which they may change) <- resources
(redirects, upstreams and secrets to Envoy's messages), built from filters (the
chain of one redirect) and clusters; ports (which redirect listens where).
The streams are those of xds.stream and xds.server.
"""
