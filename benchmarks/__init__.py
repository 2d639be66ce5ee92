"""Measurements, as ratios to Envoy's plain tcp_proxy in the same run.

`python -m benchmarks` (make bench) prints two tables: proxying.py, through a stock
Envoy; calls.py, through the C ABI. soak.py (make soak) looks for leaks.
"""
