"""What happens on a node, as it happens: L7 decisions, drops, traces, policy verdicts.

`hub` merges the access log of the node's proxies with the events of the eBPF programs and
gives them to whoever subscribes; `records` is what an entry looks like; `ends` knows which
endpoint and which labels an address has; `lines` writes entries as ``cilium monitor`` does.
"""
