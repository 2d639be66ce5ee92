"""Whether what the configuration names is there: directories, and Envoy's binary."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from node.agent.config import AgentConfig, key_of, wrong


def check_places(config: AgentConfig) -> None:
    """Hold directories and binaries that are named against this machine.

    Not a part of reading the configuration: an agent whose Envoy is missing still serves those
    that run. Raises UsageError with all that is wrong.
    """
    problems = []
    if config.envoy.startswith("/"):
        envoy = Path(config.envoy)
        if not (os.path.isfile(envoy) and os.access(envoy, os.X_OK)):
            problems.append(f"envoy: {envoy} is not a program that can be started")
    for name in ("policy_dir", "secrets_dir"):
        path = getattr(config, name)
        if path is not None and not os.path.isdir(path):
            problems.append(f"{key_of(name)}: {path} is not a directory")
        elif path is not None and not os.access(path, os.R_OK | os.X_OK):
            problems.append(f"{key_of(name)}: {path} cannot be read")
    for name in ("state_dir", "run_dir", "bpf_cache"):
        path = getattr(config, name)
        if path is not None and (reason := _cannot_be_made(path)):
            problems.append(f"{key_of(name)}: {path} cannot be made or written: {reason}")
    if problems:
        raise wrong(problems)


def _cannot_be_made(path: Path) -> str:
    """Why there can be no directory that we write into; empty if there can."""
    for nearest in (path, *path.parents):
        try:
            found = nearest.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{nearest}: {error.strerror}"
        if not stat.S_ISDIR(found.st_mode):
            return f"{nearest} is not a directory"
        return "" if os.access(nearest, os.W_OK | os.X_OK) else f"no right to write to {nearest}"
    return "there is no root directory"
