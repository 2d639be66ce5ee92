# Every target sets up what it needs first (scripts/setup.sh); a second run reuses it.

.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
FUZZ_SECONDS ?= 60
BENCH ?= all

.PHONY: help setup demo demo-cassandra demo-kafka demo-node test lint proto api lock fuzz soak bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1	\2/p' Makefile | expand -t 22

setup:  ## make .venv and build the shared library
	@sh scripts/setup.sh

demo: setup  ## the main job: a stock Envoy judges real memcached and r2d2 traffic
	$(PYTHON) -m demos

demo-cassandra:  ## the same with a real Cassandra, and its policy by action and table
	@sh scripts/setup.sh servers
	$(PYTHON) -m demos.cassandra

demo-kafka:  ## the same with a real Kafka, and its policy by role and topic
	@sh scripts/setup.sh servers
	$(PYTHON) -m demos.kafka

demo-node:  ## as root: redirection by eBPF between network namespaces; STORY=nginx: only this
	@sh scripts/setup.sh node
	$(PYTHON) -m demos.node $(STORY)

test:  ## all tests, two files at a time
	@sh scripts/setup.sh test
	$(PYTHON) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: setup  ## style, types, import rules, generated code
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	sh scripts/proto.sh --check
	$(PYTHON) scripts/api.py --check

proto: setup  ## regenerate proxylib/proto/*_pb2.py and .pyi
	sh scripts/proto.sh

api: setup  ## regenerate docs/api.md from the docstrings
	$(PYTHON) scripts/api.py

lock: setup  ## pin the newest dependencies in requirements.lock
	.venv/bin/pip-compile -q --upgrade --extra dev --allow-unsafe --strip-extras --no-header \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o requirements.lock setup.py
	rm -rf proxylib.egg-info

fuzz: setup  ## fuzz each parser and the policy reader for FUZZ_SECONDS (60)
	$(PYTHON) -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

soak: setup  ## 1,000 panics, 100,000 connections: memory stays flat
	$(PYTHON) -m benchmarks.soak

bench:  ## Envoy's CPU and latency beside tcp_proxy; BENCH=kafka (a protocol, calls ...): only this
	@sh scripts/setup.sh servers
	$(PYTHON) -m benchmarks --only $(BENCH)

clean:  ## remove what was built, .venv included
	rm -rf .venv build dist *.egg-info proxylib/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
