"""How an Envoy is started so that it outlives us.

Envoy with hot restart asks the kernel for a SIGTERM when its parent ends, so it must not
be our child: a shell starts it and ends.  It waits at a gate until its process is on
the disk, so that whoever comes after us finds it.  Should we die before we open the
gate, it ends.  Its log is a file that it cannot make larger than a limit, with nobody
there to look after it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from node.errors import SetupError
from node.proxy.process import Process

MAX_FILES = 1 << 20
"""Descriptors of an Envoy, where the system allows it: two for each connection."""

_START_TIMEOUT = 10.0
"""Seconds that the shell may take to tell the process number."""

_GATE = (
    # Standard input is the gate, standard output tells the number, the rest is the log.
    'exec 3<&0; { read -r go <&3 && exec 3<&- "$@"; } </dev/null >&2 & echo $!'
)


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    log_limit: int,
    netns: Path | None,
    register: Callable[[Process], None],
) -> Process:
    """Run `command` in a session of its own, in the network namespace at `netns` if there is one.

    log: the file that it appends its output to. log_limit: bytes that no file that it
    writes may grow beyond. register: told of the process before it does anything;
    raises to stop it. Raises SetupError.
    """
    if netns is not None:
        command = [_tool("nsenter"), f"--net={netns}", "--", *command]
    gate, opener = os.pipe()
    try:
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o640)) as output:
            done = subprocess.run(
                ["/bin/sh", "-c", _GATE, "sh", *command],
                stdin=gate,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                cwd="/",
                # What writes beyond the limit is to get an error, as we do, and not SIGXFSZ.
                restore_signals=False,
                start_new_session=True,
                timeout=_START_TIMEOUT,
                check=True,
            )
        process = Process.open(int(done.stdout))
        if process is None:
            raise SetupError(f"{command[0]}: ended before it began; see {log}")
        try:
            _limit(process, log_limit)
            register(process)
            os.write(opener, b"go\n")
        except BaseException:
            process.close()
            raise
        return process
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SetupError(f"{command[0]}: cannot be started: {error}") from error
    finally:
        os.close(gate)
        os.close(opener)


def _limit(process: Process, log_limit: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (log_limit, log_limit))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (max(most, MAX_FILES), most):
        try:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, files))
        except (PermissionError, ValueError):
            continue  # Only root may have more than it was given, and not more than fs.nr_open.
        return


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SetupError(f"{name} is not installed; it is in the package util-linux")
    return found
