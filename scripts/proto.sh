#!/bin/sh
# Generates the protobuf modules and their types; with --check, compares them instead.
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH

generate() { python -m grpc_tools.protoc -I. --python_out="$1" --mypy_out="quiet:$1" proxylib/proto/*.proto xds/proto/*.proto; }

if [ "${1:-}" = --check ]; then
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    for made in "$fresh"/*/proto/*; do
        diff -u "${made#"$fresh/"}" "$made" ||
            { echo "generated code is out of date: run 'make proto'" >&2; exit 1; }
    done
else
    generate .
fi
