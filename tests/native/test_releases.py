"""The library refuses an Envoy that it does not fit, and says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from proxylib.native import ENVOY_RELEASES, library_path

HOST = r"""
#include <dlfcn.h>
#include <stdio.h>
#ifdef FITS
int envoy_dynamic_module_callback_network_filter_start_downstream_secure_transport(void *f) {
  return f != 0;
}
#endif
int main(int argc, char **argv) {
  (void)argc;
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (!library) return puts(dlerror()), 2;
  const char *(*init)(void) = dlsym(library, "envoy_dynamic_module_on_program_init");
  const char *version = init();
  puts(version ? version : "refused");
  return 0;
}
"""


@pytest.mark.parametrize("fits", [True, False])
def test_only_its_own_releases(tmp_path: Path, fits: bool) -> None:
    source, host = tmp_path / "host.c", tmp_path / "host"
    source.write_text(HOST)
    options = ["-rdynamic"] + ["-DFITS"] * fits
    subprocess.run(["gcc", *options, "-o", host, source, "-ldl"], check=True)
    done = subprocess.run(
        [host, library_path()], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout == ("v0.2.0\n" if fits else "refused\n")
    assert all(release in done.stderr for release in ENVOY_RELEASES) is not fits
