"""nginx from the system, serving files."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.address import Address
from node.errors import SetupError

START_TIMEOUT = 10.0

_NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        root {folder}/www;
        default_type text/plain;
        add_header X-Client-Address $remote_addr;
        keepalive_requests 100000;
    }}
}}
"""


@contextmanager
def nginx(address: Address, folder: Path, files: dict[str, bytes]) -> Iterator[None]:
    """nginx serving `files` by their paths; it tells clients their address in a header.

    Raises SetupError if it cannot.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SetupError("nginx is not installed (Debian package nginx-light)")
    for name, content in files.items():
        path = folder / "www" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, address=address))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _accepts(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SetupError(f"nginx does not start: {(folder / 'error.log').read_text()}")
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError:
        return False
    return True
