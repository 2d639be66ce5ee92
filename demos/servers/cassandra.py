"""A real Cassandra 5.0, one node, on an address of its own.

``with cassandra("127.0.7.1") as port:``.  It keeps nothing: its folder is temporary.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from demos.servers.maven import jars
from node.errors import SetupError

VERSION = "5.0.9"
ARTIFACTS = (f"cassandra-{VERSION}", [f"org.apache.cassandra:cassandra-all:{VERSION}"])
"""What `maven.jars` must get."""

START_TIMEOUT = 90.0
STOP_TIMEOUT = 30.0

_JAVA = """
--add-exports=java.base/jdk.internal.misc=ALL-UNNAMED
--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED
--add-exports=java.base/sun.nio.ch=ALL-UNNAMED
--add-opens=java.base/java.io=ALL-UNNAMED
--add-opens=java.base/java.nio=ALL-UNNAMED
--add-opens=java.base/sun.nio.ch=ALL-UNNAMED
-Xms64m -Xmx256m -Xss384k -XX:MaxDirectMemorySize=128m -XX:+UseSerialGC
-XX:TieredStopAtLevel=1
-Dcassandra-foreground=yes -Dcassandra.skip_wait_for_gossip_to_settle=0
-Dcassandra.ring_delay_ms=0 -Dcassandra.superuser_setup_delay_ms=0
-Dcassandra.unsafesystem=true -Dcassandra.memtable.row_overhead_size=181
"""

_CONFIG = """
cluster_name: tests
num_tokens: 1
initial_token: 0
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{host}:{storage}"}}]
listen_address: {host}
rpc_address: {host}
storage_port: {storage}
start_native_transport: true
native_transport_port: {port}
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
saved_caches_directory: {folder}/caches
hints_directory: {folder}/hints
cdc_raw_directory: {folder}/cdc
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 4MiB
hinted_handoff_enabled: false
disk_failure_policy: stop
materialized_views_enabled: true
user_defined_functions_enabled: true
authenticator: {authenticator}
authorizer: {authorizer}
role_manager: CassandraRoleManager
"""

_LOGBACK = """<configuration>
<appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
<encoder><pattern>%-5level %logger{20} %msg%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
"""


@contextlib.contextmanager
def cassandra(host: str, *, port: int = 0, passwords: bool = False) -> Iterator[int]:
    """A Cassandra at `host`; yields its port (0: a free one). passwords: clients must log in
    (cassandra/cassandra is there). Raises SetupError."""
    class_path = jars(*ARTIFACTS)
    with tempfile.TemporaryDirectory(prefix="cassandra-") as name:
        folder = Path(name)
        free, storage = _free_ports(host)
        port = port or free
        (folder / "logback.xml").write_text(_LOGBACK)
        (folder / "cassandra.yaml").write_text(
            _CONFIG.format(
                host=host,
                port=port,
                storage=storage,
                folder=folder,
                authenticator="PasswordAuthenticator" if passwords else "AllowAllAuthenticator",
                authorizer="CassandraAuthorizer" if passwords else "AllowAllAuthorizer",
            )
        )
        command = [
            "java",
            *_JAVA.split(),
            f"-Dcassandra.config=file://{folder}/cassandra.yaml",
            f"-Dcassandra.storagedir={folder}",
            f"-Dlogback.configurationFile=file://{folder}/logback.xml",
            *("-cp", class_path),
            "org.apache.cassandra.service.CassandraDaemon",
        ]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
        with (folder / "output").open("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            try:
                _wait(process, host, port, output.name)
                yield port
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(process: subprocess.Popen[bytes], host: str, port: int, output: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            text = Path(output).read_text(errors="replace")[-3000:]
            raise SetupError(f"Cassandra does not start:\n{text}")
        time.sleep(0.1)


def _free_ports(host: str) -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind((host, 0))
        return one.getsockname()[1], two.getsockname()[1]
