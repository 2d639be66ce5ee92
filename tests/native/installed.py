"""An installation of the library elsewhere, with parsers of its own.

The package is copied to the site-packages of a bare virtual environment whose
entry points are the parsers of hostile.py and scripted.py: what a third party's installation
looks like, and no variable says where it is.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import proxylib
from proxylib.native import LIBRARY
from tests.native import hostile, scripted

ROOT = Path(__file__).parents[2]


def install(prefix: Path, modules: Sequence[ModuleType] = (hostile, scripted)) -> Path:
    """Make the installation in `prefix`; returns its library.

    modules: files of parsers, each with their NAMES.
    """
    venv.create(prefix, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = prefix / "lib" / version / "site-packages"
    shutil.copytree(Path(proxylib.__file__).parent, site / "proxylib")
    for module in modules:
        shutil.copy(str(module.__file__), site)
    (site / "rest.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    info = site / "hostile-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1\n")
    named = ((name, Path(str(module.__file__)).stem) for module in modules for name in module.NAMES)
    points = "\n".join(f"{name} = {module}" for name, module in named)
    (info / "entry_points.txt").write_text(f"[proxylib.parsers]\n{points}\n")
    return site / "proxylib" / LIBRARY
