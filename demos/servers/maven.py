"""Jars of a server, by Maven, kept in ``.cache/`` and used again.

`jars` returns the class path.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from node.errors import SetupError

CACHE = Path(__file__).parents[2] / ".cache"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_TIMEOUT = 600.0


class Missing(SetupError):
    """What the machine must have for this cannot be had; the text says what to do."""


def jars(name: str, artifacts: Iterable[str]) -> str:
    """The class path of `artifacts` (``group:artifact:version``) and what they need.

    name: the folder in the cache, with the version. Raises Missing.
    """
    if shutil.which("java") is None:
        raise Missing("java is not installed (Debian: apt install openjdk-17-jre-headless)")
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
    if shutil.which("mvn") is None:
        raise Missing("mvn is not installed (Debian: apt install maven)")
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>"
        "</dependency>".format(*map(escape, artifact.split(":")))
        for artifact in artifacts
    )
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>demos</groupId><artifactId>jars</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    )
    command = ["mvn", "-B", "-q", "-C", _COPY, "-DoutputDirectory=lib", "-DincludeScope=runtime"]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr)[-2000:]
        raise Missing(f"Maven cannot get {folder.name}: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"Maven does not get {folder.name} within {_TIMEOUT:g} s") from error
