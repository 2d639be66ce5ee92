"""What tests of the programs' maps and events need: root, a bpffs of their own."""

from __future__ import annotations

from tests.bpf.conftest import bpffs, cache, privileged

__all__ = ["bpffs", "cache", "privileged"]
