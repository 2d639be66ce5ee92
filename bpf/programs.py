"""The two programs of endpoints: taken from their pins, or compiled, loaded and pinned.

On the node one pair serves all endpoints. In a sidecar the endpoint's number is a constant of
the program, as interfaces of two namespaces may have one number; its pair lives by its filters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bpf import compiler, syscall
from bpf.compiler import Code
from bpf.errors import BpfError
from bpf.links import PROGRAMS
from bpf.syscall import Map

SIDECAR = "SIDECAR_ENDPOINT"
"""The macro that makes the programs those of a sidecar: its endpoint's number."""

Pair = tuple[int, int]


@dataclass(slots=True)
class Programs:
    """The programs of one source over one set of maps."""

    source: Path
    cache: Path
    folder: Path
    maps: Mapping[str, Map]
    node: Pair = (-1, -1)
    """Descriptors of the node's pair, once `open` was called."""
    compiled: int = 0
    """How often the compiler or its cache was needed."""
    loaded: int = 0
    """How often the verifier was needed, which takes longest."""
    _sidecar: dict[str, Code] = field(default_factory=dict)
    _hash: str = field(init=False)

    @property
    def name(self) -> str:
        """What tells these programs in their places from others, of another source or maps."""
        return f"{self._hash}-{self.maps['links'].info.id}"

    def __post_init__(self) -> None:
        self._hash = compiler.source_hash(self.source, {})

    def open(self) -> None:
        """Have the node's pair; pins of other sources are taken away."""
        fds = self._pinned()
        if fds is None:
            code = self._compile(())
            fds = self._load(code, {})
            for program, fd in zip(PROGRAMS, fds, strict=True):
                self._pin(fd, self.folder / f"{program}_{self._hash}")
        self.node = fds
        for path in self.folder.iterdir():
            if path.name.startswith(PROGRAMS) and not path.name.endswith(self._hash):
                path.unlink()

    @contextmanager
    def sidecar(self, number: int) -> Iterator[Callable[[], Pair]]:
        """What makes a pair for one endpoint, if it is called; until the block ends."""
        with ExitStack() as stack:

            def make() -> Pair:
                if not self._sidecar:
                    self._sidecar = self._compile((SIDECAR,))
                pair = self._load(self._sidecar, {SIDECAR: number})
                for fd in pair:
                    stack.callback(os.close, fd)
                return pair

            yield make

    def close(self) -> None:
        """Let go of the node's pair."""
        for fd in self.node:
            if fd >= 0:
                os.close(fd)
        self.node = (-1, -1)

    def _pinned(self) -> Pair | None:
        """The pinned pair, if it is of this source and looks up in these maps."""
        known = {found.info.id for found in self.maps.values()}
        fds: list[int] = []
        for program in PROGRAMS:
            try:
                fds.append(syscall.get_pinned(self.folder / f"{program}_{self._hash}"))
            except OSError:
                break
        if len(fds) == len(PROGRAMS) and all(syscall.program_maps(fd) <= known for fd in fds):
            return fds[0], fds[1]
        for fd in fds:
            os.close(fd)
        return None

    def _compile(self, constants: tuple[str, ...]) -> dict[str, Code]:
        if compiler.source_hash(self.source, {}) != self._hash:
            raise BpfError(f"{self.source} has changed since the agent started: restart the agent")
        self.compiled += 1
        return compiler.compile_source(self.source, self.cache, {}, constants)

    def _load(self, code: Mapping[str, Code], constants: Mapping[str, int]) -> Pair:
        self.loaded += 1
        fds = {name: found.fd for name, found in self.maps.items()}
        first = compiler.load(code, PROGRAMS[0], fds, constants=constants)
        try:
            return first, compiler.load(code, PROGRAMS[1], fds, constants=constants)
        except BpfError:
            os.close(first)
            raise

    def _pin(self, fd: int, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            syscall.pin(fd, path)
        except OSError as error:
            raise BpfError(f"{path} cannot be pinned: {error.strerror}") from error
