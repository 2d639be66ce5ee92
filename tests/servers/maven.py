"""Jars of a server, by Maven, kept in ``.cache/`` and used again.

`jars` returns the class path.  Without Java or Maven, or if the artifacts cannot be
had, it skips the test with the reason, but fails it where ``CI`` is set: a run that
must show everything may not leave this out in silence.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from xml.sax.saxutils import escape

import pytest

CACHE = Path(__file__).parents[2] / ".cache"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_TIMEOUT = 600.0


def jars(name: str, artifacts: Iterable[str]) -> str:
    """The class path of `artifacts` (``group:artifact:version``) and what they need.

    name: the folder in the cache, with the version.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            _cannot(f"{program} is not installed (Debian: openjdk-17-jre-headless, maven)")
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "complete"
        if not done.exists():
            _download(folder, artifacts)
            done.touch()
    return f"{folder}/lib/*"


def _download(folder: Path, artifacts: Iterable[str]) -> None:
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>"
        "</dependency>".format(*map(escape, artifact.split(":")))
        for artifact in artifacts
    )
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>tests</groupId><artifactId>jars</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    )
    command = ["mvn", "-B", "-q", "-C", _COPY, "-DoutputDirectory=lib", "-DincludeScope=runtime"]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        _cannot(f"Maven cannot get {folder.name}: {(error.stdout + error.stderr)[-2000:]}")
    except subprocess.TimeoutExpired:
        _cannot(f"Maven does not get {folder.name} within {_TIMEOUT:g} s")


def _cannot(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
