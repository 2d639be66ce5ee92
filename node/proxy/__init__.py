"""Envoy's process as the agent has it: it outlives the agent, and the next one takes it over.

`Proxy` (supervisor.py) starts one, watches it, starts it again, and has a new generation
take over from it.  `stop` (ending.py) ends one by what it left on the disk.
"""
