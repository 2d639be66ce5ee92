"""A whole node: real network namespaces, agent, programs, Envoy, servers and clients."""
