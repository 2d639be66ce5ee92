"""The proxy on one machine: Envoy's process, its configuration, and the command line.

address, bootstrap and envoy know one thing each; run puts them together with the
control server and the access log; cli and commands/ are the user's way in.
"""
