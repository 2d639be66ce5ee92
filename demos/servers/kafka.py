"""A real Kafka, one node without ZooKeeper, on an address of its own.

``with kafka("4.3.1", "127.0.7.2", proxies=2) as broker:``.  Clients ask a broker where it
is and go there, so a broker behind a proxy must name the proxy: it has a listener for
each, whose advertised address is one where a proxy may be put.  It keeps nothing: its
folder is temporary.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demos.servers.maven import jars
from node.address import Address
from node.errors import SetupError

OLD, NEW = "3.9.2", "4.3.1"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0

_JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"

_CONFIG = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners={listeners},CONTROLLER://{host}:{controller}
advertised.listeners={advertised}
controller.listener.names=CONTROLLER
inter.broker.listener.name=DIRECT
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
log.dirs={folder}/data
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=true
num.network.threads=1
num.io.threads=2
log.cleaner.enable=false
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=400
"""

USER, PASSWORD = "luke", "red-5"
_LOGIN = "org.apache.kafka.common.security"
_SASL = f"""
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.{{name}}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.{{name}}.plain.sasl.jaas.config={_LOGIN}.plain.PlainLoginModule required \\
  user_{USER}="{PASSWORD}";
listener.name.{{name}}.scram-sha-256.sasl.jaas.config={_LOGIN}.scram.ScramLoginModule required;
"""


@dataclass(frozen=True, slots=True)
class Behind:
    """A listener for a proxy, and where that proxy must listen."""

    upstream: Address
    proxy: Address


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker. direct: its address without a proxy."""

    direct: Address
    behind: tuple[Behind, ...]
    class_path: str


def artifacts(version: str) -> tuple[str, list[str]]:
    """What `maven.jars` must get."""
    server = f"org.apache.kafka:kafka_2.13:{version}"
    return f"kafka-{version}", [server, "org.slf4j:slf4j-simple:1.7.36"]


@contextlib.contextmanager
def kafka(
    version: str, host: str, *, proxies: int = 1, port: int = 0, passwords: bool = False
) -> Iterator[Broker]:
    """A Kafka of `version` at `host`, to be reached directly and through proxies.

    port: of the listener behind the first proxy (0: a free one). passwords: behind a
    proxy, clients must log in (USER, PASSWORD), by SASL's PLAIN or SCRAM-SHA-256.
    Raises SetupError.
    """
    class_path = jars(*artifacts(version))
    ports = iter(_free_ports(host, 2 + 2 * proxies))
    controller, direct = next(ports), Address(host, next(ports))
    upstreams = [Address(host, next(ports)) for _ in range(proxies)]
    if port:
        upstreams[0] = Address(host, port)
    behind = tuple(Behind(upstream, Address(host, next(ports))) for upstream in upstreams)
    names = ["DIRECT", *(f"PROXY{index}" for index in range(proxies))]
    listen = [direct, *(item.upstream for item in behind)]
    named = [direct, *(item.proxy for item in behind)]
    with tempfile.TemporaryDirectory(prefix="kafka-") as name:
        folder = Path(name)
        properties = folder / "server.properties"
        protocol = "SASL_PLAINTEXT" if passwords else "PLAINTEXT"
        kinds = dict.fromkeys(names, protocol) | {"DIRECT": "PLAINTEXT"}
        properties.write_text(
            _CONFIG.format(
                host=host,
                controller=controller,
                folder=folder,
                listeners=",".join(f"{n}://{a}" for n, a in zip(names, listen, strict=True)),
                advertised=",".join(f"{n}://{a}" for n, a in zip(names, named, strict=True)),
                protocols=",".join(f"{name}:{kind}" for name, kind in kinds.items()),
            )
            + "".join(_SASL.format(name=name.lower()) for name in names[1:] if passwords)
        )
        java = ["java", *_JVM, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", class_path]
        with (folder / "output").open("w+") as output:
            storage = [*java, "-Xmx96m", "kafka.tools.StorageTool", "format", "-t", _CLUSTER]
            if passwords:
                storage += ["-S", f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"]
            subprocess.run(
                [*storage, "-c", str(properties)], check=True, stdout=output, stderr=output
            )
            command = [*java, "-Xms64m", "-Xmx256m", "kafka.Kafka", str(properties)]
            process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                _wait(process, direct, output.name)
                yield Broker(direct, behind, class_path)
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(process: subprocess.Popen[bytes], address: Address, output: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address.host, address.port), 1),
        ):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            text = Path(output).read_text(errors="replace")[-3000:]
            raise SetupError(f"Kafka does not start:\n{text}")
        time.sleep(0.1)


def _free_ports(host: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]
