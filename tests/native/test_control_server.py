"""From YAML to verdicts: the real control server, the built library, a C host."""

from __future__ import annotations

from pathlib import Path

from proxylib import FilterResult
from tests.native.chost import HostProcess
from tests.native.services import LogSocket, wait_for
from xds.control import ControlServer

ENDPOINTS = """
endpoints:
- {address: 10.0.0.1, labels: {app: droid}}
- {address: 10.0.0.2, labels: {app: pilot}}
- {address: 10.0.0.3, labels: {app: trooper}}
"""

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: droid}}
spec:
  endpointSelector: {{matchLabels: {{app: droid}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: pilot}}}}]
    toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules: {{l7proto: r2d2, l7: [{{cmd: {cmd}}}]}}
"""


def test_audit_mode_passes_and_tells(host_program: Path, tmp_path: Path) -> None:
    endpoints = ENDPOINTS.replace("{app: droid}", "{app: droid}, audit: true")
    control = ControlServer(tmp_path / "xds.sock")
    control.start()
    control.set_documents({"p": POLICY.format(cmd="HALT")}, endpoints)
    log = LogSocket(tmp_path / "log.sock")
    process = HostProcess(host_program, tmp_path / "stderr")
    both = b"HALT\r\nRESET\r\n"
    try:
        instance = process.open_module(
            [("xds-path", str(tmp_path / "xds.sock")), ("access-log-path", str(log.path))]
        )
        identities = {text: number for number, text in control.status().identities.items()}
        pilot = identities["unspec:app=pilot"]
        process.new_connection(instance, 0, "r2d2", policy_name="10.0.0.1", src_id=pilot)
        assert process.io(0, False, False, both).out == (both, b"")
        entries = [
            log.wait(lambda e, c=c: e.generic_l7.fields["cmd"] == c, c) for c in ("HALT", "RESET")
        ]
        assert [(e.entry_type, e.audit) for e in entries] == [(0, False), (0, True)]

        control.set_documents({"p": POLICY.format(cmd="HALT")}, ENDPOINTS)
        wait_for(lambda: process.io(0, False, False, both).out == (both[:6], b"ERROR\r\n"), "force")
        last = log.wait(lambda e: e.entry_type == 2, "a denial")
        assert not last.audit
    finally:
        process.kill()
        control.stop()
        log.close()


def test_yaml_to_verdicts(host_program: Path, tmp_path: Path) -> None:
    policy, endpoints = tmp_path / "policy.yaml", tmp_path / "endpoints.yaml"
    policy.write_text(POLICY.format(cmd="HALT"))
    endpoints.write_text(ENDPOINTS)
    control = ControlServer(tmp_path / "xds.sock", [policy], endpoints)
    control.start()
    log = LogSocket(tmp_path / "log.sock")
    process = HostProcess(host_program, tmp_path / "stderr")
    try:
        instance = process.open_module(
            [("xds-path", str(tmp_path / "xds.sock")), ("access-log-path", str(log.path))]
        )
        identities = {text: number for number, text in control.status().identities.items()}
        pilot, trooper = (
            next(number for text, number in identities.items() if f"app={name}" in text)
            for name in ("pilot", "trooper")
        )
        for number, identity in enumerate((pilot, trooper)):
            opened = process.new_connection(
                instance, number, "r2d2", policy_name="10.0.0.1", src_id=identity
            )
            assert opened == FilterResult.OK
        both = b"HALT\r\nRESET\r\n"
        assert process.io(0, False, False, both).out == (b"HALT\r\n", b"ERROR\r\n")
        assert process.io(1, False, False, both).out == (b"", b"ERROR\r\n" * 2)

        policy.write_text(POLICY.format(cmd="RESET"))
        control.reload()
        wait_for(lambda: process.io(0, False, False, both).out[0] == b"RESET\r\n", "the new rules")

        entry = log.wait(lambda e: e.source_security_id == trooper, "the trooper's denial")
        assert entry.generic_l7.fields["cmd"] == "HALT"
    finally:
        process.kill()
        control.stop()
        log.close()
