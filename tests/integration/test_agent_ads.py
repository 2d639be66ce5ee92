"""A stock Envoy that knows only envoy_configs/node.yaml: the agent tells it all the rest.

Nothing redirects connections here: the agent has an `upstream`, and clients connect to
the proxy ports of its redirects.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from demos.stage import line_server
from node.address import Address
from node.envoy import EnvoyProcess, find_envoy
from tests.integration.test_ads import ROOT, certificate, tls_ask, tls_server, web_server
from tests.integration.test_agent import agent_in, say
from tests.native.services import wait_for
from tests.node.agents import Agent, http_client, r2d2, settings
from tests.node.conftest import Command

SERVER, JEDI, OTHER = "127.31.0.1", "127.31.0.2", "127.31.0.3"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with TemporaryDirectory(prefix="aa") as path:
        yield Path(path)


@contextmanager
def node(folder: Path, upstream: Address, *more: object) -> Iterator[Command]:
    with agent_in(folder, "--node-name", "node", "--upstream", upstream, *more) as agent:
        yield agent


@contextmanager
def client(folder: Path) -> Iterator[Agent]:
    config = settings(folder)
    with http_client(config.api_path) as connection:
        yield Agent(config, connection)


@contextmanager
def envoy(folder: Path) -> Iterator[EnvoyProcess]:
    run = settings(folder).run_dir
    document = folder / "node.yaml"
    text = (ROOT / "envoy_configs/node.yaml").read_text()
    document.write_text(text.replace("/run/proxylib", str(run)))
    with EnvoyProcess(find_envoy(), document, run / "admin.sock") as process:
        process.wait_ready()
        yield process


def listener_updates(process: EnvoyProcess) -> dict[str, str]:
    """What Envoy counts of changes of its listeners."""
    lines = process.ask("/stats?filter=listener_manager")[1].splitlines()
    counted = dict(line.split(": ", 1) for line in lines)
    names = ("added", "modified", "removed", "in_place_updated")
    found = {name: counted[f"listener_manager.listener_{name}"] for name in names}
    return found | {
        name: counted[f"listener_manager.lds.update_{name}"] for name in ("success", "rejected")
    }


def proxy(agent: Agent) -> Address:
    """Where the one redirect's listener is; port 0: nowhere."""
    (redirect,) = agent.get("/redirects")
    return Address("127.0.0.1", redirect["proxy-port"])


def states(agent: Agent) -> dict[str, str]:
    """By type, as `xds status` prints it."""
    rows = [line.split("   ") for line in agent.cli("xds", "status").stdout.splitlines()[1:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {row[1].rpartition(".")[2]: row[2] for row in cells if row[0] == "node"}


@pytest.mark.timeout(200)
def test_listeners_come_from_the_agent(folder: Path) -> None:
    with line_server(Address(SERVER, 0), lambda line: line) as upstream, ExitStack() as agents:
        first = agents.enter_context(node(folder, upstream))
        policy = r2d2().replace("4040", str(upstream.port))
        with envoy(folder) as process, client(folder) as agent:
            agent.cli("endpoint", "add", "--address", SERVER, "--label", "app=r2d2")
            agent.cli("endpoint", "add", "--address", JEDI, "--label", "role=jedi")
            imported = agent.cli("policy", "import", "-", "--wait", stdin=policy)
            assert imported.exit_code == 0, imported.output
            where = proxy(agent)
            wait_for(lambda: say(where, JEDI, b"READ x") == b"READ x", "the library's policy")
            assert say(where, JEDI, b"HALT") == b"ERROR"
            assert say(where, OTHER, b"READ x") == b""
            types = ("Cluster", "Listener", "NetworkPolicy", "NetworkPolicyHosts")
            assert {name: states(agent).get(name) for name in types} == dict.fromkeys(
                types, "in force"
            )

            # Another policy is another answer, and no other listener.
            before = listener_updates(process)
            assert (before["added"], before["rejected"]) == ("1", "0")
            changed = policy.replace("READ", "HALT")
            imported = agent.cli("policy", "import", "-", "--wait", stdin=changed)
            assert imported.exit_code == 0, imported.output
            assert say(where, JEDI, b"HALT") == b"HALT"
            assert say(where, JEDI, b"READ x") == b"ERROR"
            assert listener_updates(process) == before

            # Killed under traffic, and started again: nothing is lost.
            replies: list[bytes] = []
            stopping = threading.Event()

            def traffic() -> None:
                while not stopping.is_set():
                    replies.append(say(where, JEDI, b"HALT"))

            sender = threading.Thread(target=traffic)
            sender.start()
            try:
                os.kill(first.process.pid, signal.SIGKILL)
                first.process.wait()
                assert say(where, JEDI, b"READ x") == b"ERROR"
                agents.enter_context(node(folder, upstream))
                with client(folder) as anew:
                    revision = anew.get("/policy")["revision"]
                    waited = anew.cli("policy", "wait", revision, "--nodes", "1", "--timeout", "60")
                    assert waited.exit_code == 0, waited.output
                    assert proxy(anew) == where
                    so_far = len(replies)
                    wait_for(lambda: len(replies) > so_far + 20, "more traffic")
            finally:
                stopping.set()
                sender.join()
            assert set(replies) == {b"HALT"}
            assert listener_updates(process) == before


HEADER = """
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules:
        http: [{{headerMatches: [{{name: X-Token, secret: {{name: token, namespace: prod}}}}]}}]
"""


@pytest.mark.timeout(120)
def test_header_values_come_from_the_secrets(folder: Path) -> None:
    secrets = folder / "secrets"
    (secrets / "prod").mkdir(parents=True)
    (secrets / "prod/token").write_text("xyzzy\n")

    def answer(where: Address, token: str) -> int:
        connection = http.client.HTTPConnection(where.host, where.port, timeout=10)
        try:
            connection.request("GET", "/", headers={"X-Token": token})
            return connection.getresponse().status
        except ConnectionError:
            return 0
        finally:
            connection.close()

    with (
        web_server() as web,
        node(folder, web, "--secrets-dir", secrets),
        envoy(folder),
        client(folder) as agent,
    ):
        agent.add_endpoint(web.host, "app=web")
        imported = agent.put_policy(HEADER.format(port=web.port))
        assert imported.status_code == 200, imported.text
        where = proxy(agent)
        wait_for(lambda: answer(where, "xyzzy") == 200, "the listener and its policy")
        assert answer(where, "plugh") == 403


TLS = """
kind: CiliumNetworkPolicy
metadata: {{name: droids}}
spec:
  endpointSelector: {{matchLabels: {{app: r2d2}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      terminatingTLS: {{secret: {{name: front, namespace: prod}}}}
      originatingTLS: {{secret: {{name: back, namespace: prod}}}}
      rules: {{l7proto: r2d2, l7: [{{cmd: HALT}}]}}
"""


@pytest.mark.timeout(120)
def test_tls_is_opened_with_the_secrets(folder: Path) -> None:
    """Judged inside TLS, as soon as there are secrets; a broken renewal changes nothing."""
    secrets, name = folder / "secrets", "droid.example"
    front, back = secrets / "prod/front", secrets / "prod/back"
    front.mkdir(parents=True)
    back.mkdir()
    cert, key = certificate(folder, name)
    with (
        tls_server(cert, key) as droid,
        node(folder, droid, "--secrets-dir", secrets),
        envoy(folder),
        client(folder) as agent,
    ):
        agent.add_endpoint(droid.host, "app=r2d2")
        imported = agent.put_policy(TLS.format(port=droid.port))
        assert imported.status_code == 200, imported.text
        (redirect,) = agent.get("/redirects")
        assert redirect["proxy-port"] == 0
        assert "prod/front/tls.crt" in redirect["problem"]
        assert (redirect["terminating"], redirect["originating"]) == ("prod/front", "prod/back")
        assert agent.get("/healthz")["state"] == "Warning"

        shutil.copy(cert, back / "ca.crt")
        shutil.copy(key, front / "tls.key")
        shutil.copy(cert, front / "tls.crt")
        wait_for(lambda: proxy(agent).port, "the secrets to be found")
        port = proxy(agent).port

        def asked(trusted: Path) -> bytes:
            try:
                return tls_ask(port, trusted, name)
            except OSError:
                return b""

        wait_for(lambda: asked(cert) == b"HALT\r\n", "TLS")
        with pytest.raises(AssertionError):
            assert tls_ask(port, certificate(folder, "other")[0], name) == b"HALT\r\n"

        # What Envoy refuses is shown, and what it had stays.
        (front / "tls.crt").write_text("-----BEGIN CERTIFICATE-----\nnot base64\n")
        wait_for(lambda: states(agent).get("Secret") == "refused", "the refusal")
        status = agent.cli("xds", "status")
        assert status.exit_code == 1
        assert "Failed to load certificate chain" in status.stdout
        assert asked(cert) == b"HALT\r\n"

        # A renewal is taken up: another certificate, the same listener.
        (folder / "new").mkdir()
        renewed, renewed_key = certificate(folder / "new", name)
        shutil.copy(renewed_key, front / "tls.key")
        shutil.copy(renewed, front / "tls.crt")
        wait_for(lambda: asked(renewed) == b"HALT\r\n", "the new certificate")
        assert proxy(agent).port == port
        wait_for(lambda: agent.cli("xds", "status").exit_code == 0, "nothing refused")


HTTPS = """
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      terminatingTLS: {{secret: {{name: web, namespace: prod}}}}
      originatingTLS: {{secret: {{name: web, namespace: prod}}, trustedCA: bundle.pem}}
      rules:
        http: [{{path: "/public.*"}}]
"""


@pytest.mark.timeout(120)
def test_https_is_judged_request_by_request(folder: Path) -> None:
    """One secret with both roles; the server must have the name of the request."""
    secret, name = folder / "secrets/prod/web", "web.example"
    secret.mkdir(parents=True)
    cert, key = certificate(folder, name)
    for source, item in ((cert, "tls.crt"), (key, "tls.key"), (cert, "bundle.pem")):
        shutil.copy(source, secret / item)
    context = ssl.create_default_context(cafile=cert)

    def answer(where: Address, path: str) -> int:
        """The status; 0 if there is no answer (yet)."""
        try:
            with (
                socket.create_connection((where.host, where.port), 10) as plain,
                context.wrap_socket(plain, server_hostname=name) as client,
            ):
                client.sendall(f"GET {path} HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
                return int((client.recv(1000) or b"- 0").split()[1])
        except (OSError, ssl.SSLError):
            return 0

    with (
        web_server(tls=(cert, key)) as web,
        node(folder, web, "--secrets-dir", secret.parents[1]),
        envoy(folder),
        client(folder) as agent,
    ):
        agent.add_endpoint(web.host, "app=web")
        imported = agent.put_policy(HTTPS.format(port=web.port))
        assert imported.status_code == 200, imported.text
        where = proxy(agent)
        wait_for(lambda: answer(where, "/public") == 200, "TLS, routes and policy")
        assert answer(where, "/secret") == 403
