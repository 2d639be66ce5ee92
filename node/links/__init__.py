"""Where endpoints are attached: network namespaces, veths, and what becomes of them.

namespaces.py says which namespace a name, a path or a process means, and works inside one;
discovery.py finds the node's end of an endpoint's veth, and its addresses; watcher.py tells what
the kernel says about them from then on.
"""
