"""The node's data path: programs in the kernel, the maps they look up in, the routes they need.

Imports nothing of ours, needs neither root nor bcc to be imported, and knows nothing of
policy documents: it is told numbers (endpoints, identities, entries) and puts them in force.
"""
