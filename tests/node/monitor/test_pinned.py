"""Real pinned maps, and the commands that list them: with an agent, and without."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bpf import maps, schema
from bpf.ipcache import address_bytes, prefix_key
from bpf.policies import PolicyEntry
from bpf.schema import POLICY_KEY, U32, U64, Config, ConntrackFlags, Flags
from bpf.syscall import Map, possible_cpus
from node.cli import cli
from node.monitor import pinned
from tests.node.agents import running

SIZES = {name: 256 for name, spec in schema.MAPS.items() if spec.size > 256} | {"events": 4096}
CLIENT, SERVER = 7, 9
SLOT = 3


@pytest.fixture
def root(bpffs: Path) -> Path:
    return bpffs / "proxylib"


@pytest.fixture
def opened(root: Path) -> Iterator[dict[str, Map]]:
    """The maps of a node with two endpoints that share a policy."""
    found = maps.open_maps(maps.folder(root, SIZES), SIZES)
    for number, ifindex, ipv4, ipv6, identity in (
        (CLIENT, 12, "10.0.0.1", "fd00::1", 256),
        (SERVER, 14, "10.0.0.2", "", 257),
    ):
        link = schema.LINK.pack(number, 0, address_bytes(ipv4), address_bytes(ipv6))
        found["links"].set(U32.pack(ifindex), link)
        endpoint = schema.ENDPOINT.pack(identity, SLOT, 0, ifindex)
        found["endpoints"].set(U32.pack(number), endpoint)
    for prefix, identity in (("10.0.0.1", 256), ("10.0.0.2", 257), ("192.0.2.0/24", 16777217)):
        found["ipcache"].set(prefix_key(prefix), U32.pack(identity))
    yield found
    maps.close_maps(found)


def say(found: dict[str, Map], slot: int, *entries: PolicyEntry) -> None:
    for entry in entries:
        key, value = entry.pair()
        length, _, *rest = POLICY_KEY.unpack(key)
        found["policy"].set(POLICY_KEY.pack(length, slot, *rest), value)


def connect(
    found: dict[str, Map],
    endpoint: int,
    own_port: int,
    peer: str,
    peer_port: int,
    *,
    protocol: int = 6,
    flags: int = 0,
    proxy_port: int = 0,
    lifetime: float = 60,
) -> None:
    key = schema.CONNTRACK_KEY.pack(endpoint, protocol, 0, own_port, peer_port, address_bytes(peer))
    expires = time.monotonic_ns() + int(lifetime * 1e9)
    value = schema.CONNTRACK_VALUE.pack(4, 300, 5, 402, expires, 1, 256, 257, flags, proxy_port)
    found["conntrack"].set(key, value)


def proxylib(*arguments: object, root: Path, **environment: str) -> Result:
    words = ["bpf", *map(str, arguments), "--bpf-root", str(root)]
    result = CliRunner().invoke(cli, words, env={"PROXYLIB_SOCKET": "/nowhere", **environment})
    assert result.exit_code == 0, result.output
    return result


def rows(*arguments: object, root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(proxylib(*arguments, "--json", root=root).stdout)
    return found


def test_policies(opened: dict[str, Map], root: Path) -> None:
    say(
        opened,
        SLOT,
        PolicyEntry(257, False, 6, 80, 24, 2, 2, 10003, 10005),
        PolicyEntry(257, True, 6, 8080, 20, 1, 0),
        PolicyEntry(0, True, 17, 0, 8, 3, 3),
        PolicyEntry(0, False, 0, 0, 0, 1, 1),
        PolicyEntry(0, False, 1, 8, 24, 2, 2),
    )
    say(opened, SLOT + 1, PolicyEntry(0, True, 0, 0, 0, 1, 1))
    assert {row["endpoint"] for row in rows("policy", "list", root=root)} == {CLIENT, SERVER}
    assert proxylib("policy", "list", SERVER, root=root).stdout == (
        "ENDPOINT   POLICY                DIRECTION   IDENTITY   LABELS (source:key[=value])"
        "   PORT/PROTO      PROXY PORT\n"
        "9          deny                  ingress     0          (everybody)               "
        "    ANY/UDP\n"
        "9          allow (audit: none)   ingress     257                                  "
        "    8080-8095/TCP\n"
        "9          allow                 egress      0          (everybody)               "
        "    ANY\n"
        "9          redirect              egress      0          (everybody)               "
        "    8/ICMP          NONE\n"
        "9          redirect              egress      257                                  "
        "    80/TCP          10003 (both 10005)\n"
    )
    (row,) = [row for row in rows("policy", "list", CLIENT, root=root) if row["proxy_port"]]
    assert row == {
        "endpoint": CLIENT,
        "direction": "egress",
        "identity": 257,
        "protocol": "TCP",
        "ports": "80",
        "verdict": "redirect",
        "would": "redirect",
        "proxy_port": 10003,
        "proxy_port_both": 10005,
    }


def test_connections(opened: dict[str, Map], root: Path) -> None:
    proxied = int(ConntrackFlags.PROXIED | ConntrackFlags.SEEN_REPLY)
    connect(opened, CLIENT, 4242, "10.0.0.2", 80, flags=proxied, proxy_port=10003)
    connect(opened, SERVER, 53, "192.0.2.7", 5353, protocol=17, flags=ConntrackFlags.FROM_PEER)
    connect(opened, CLIENT, 4243, "fd00::9", 443)
    connect(opened, CLIENT, 4244, "10.0.0.2", 80, lifetime=-1)
    plain = proxylib("ct", "list", SERVER, root=root).stdout
    assert plain == (
        "UDP IN 192.0.2.7:5353 -> 10.0.0.2:53 endpoint=9 expires=60 Flags=[] identity=257->256\n"
    )
    assert rows("ct", "list", SERVER, root=root)[0]["rx_bytes"] is None
    opened["config"].set(U32.pack(Config.FLAGS), U64.pack(Flags.ACCOUNTING))
    text = proxylib("ct", "list", root=root).stdout.splitlines()
    assert sorted(text) == [
        "TCP OUT 10.0.0.1:4242 -> 10.0.0.2:80 endpoint=7 expires=60 RxPackets=4 RxBytes=300 "
        "TxPackets=5 TxBytes=402 Flags=[proxied seen_reply] identity=256->257 ProxyPort=10003",
        "TCP OUT [fd00::1]:4243 -> [fd00::9]:443 endpoint=7 expires=60 RxPackets=4 RxBytes=300 "
        "TxPackets=5 TxBytes=402 Flags=[] identity=256->257",
        "UDP IN 192.0.2.7:5353 -> 10.0.0.2:53 endpoint=9 expires=60 RxPackets=4 RxBytes=300 "
        "TxPackets=5 TxBytes=402 Flags=[] identity=257->256",
    ]
    (one,) = rows("ct", "list", SERVER, root=root)
    assert (one["direction"], one["source"]["address"]) == ("ingress", "192.0.2.7")
    (only,) = rows("proxy", "list", root=root)
    assert only["proxy_port"] == 10003
    assert proxylib("proxy", "list", root=root).stdout.splitlines()[1].split() == (
        ["7", "egress", "10.0.0.1:4242", "10.0.0.2:80", "256->257", "10003", "60s"]
    )


def test_counters(opened: dict[str, Map], root: Path) -> None:
    key = schema.COUNTER_KEY.pack(CLIENT, schema.Direction.INGRESS, 133, 0)
    value = schema.COUNTER_VALUE.pack(2, 148) * possible_cpus()
    opened["counters"].set(key, value)
    opened["counters"].set(schema.COUNTER_KEY.pack(0, 0, 0, 0), value)
    packets, octets = 2 * possible_cpus(), 148 * possible_cpus()
    table = proxylib("metrics", "list", root=root).stdout
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["0", "Forwarded", "egress", str(packets), str(octets)],
        ["7", "Policy", "denied", "ingress", str(packets), str(octets)],
    ]
    (row,) = rows("metrics", "list", CLIENT, root=root)
    assert (row["reason"], row["code"], row["packets"]) == ("Policy denied", 133, packets)


def test_addresses_and_endpoints(opened: dict[str, Map], root: Path) -> None:
    assert [list(row.values()) for row in rows("endpoint", "list", root=root)] == [
        [CLIENT, 256, SLOT, 12, "10.0.0.1", "fd00::1"],
        [SERVER, 257, SLOT, 14, "10.0.0.2", ""],
    ]
    assert "10.0.0.1   fd00::1" in proxylib("endpoint", "list", root=root).stdout
    assert proxylib("ipcache", "list", root=root).stdout.splitlines()[1:] == [
        "10.0.0.1/32         256",
        "10.0.0.2/32         257",
        "192.0.2.0/24        16777217",
    ]


def test_labels_are_there_with_an_agent(
    opened: dict[str, Map], root: Path, short_path: Path
) -> None:
    say(opened, SLOT, PolicyEntry(256, True, 6, 80, 24, 1, 1))
    with running(short_path) as agent:
        agent.add_endpoint("10.0.0.1", "k8s:app=client", "k8s:zone=a")
        path = str(agent.config.api_path)
        text = proxylib("policy", "list", SERVER, root=root, PROXYLIB_SOCKET=path).stdout
        assert "256        k8s:app=client                80/TCP" in text
        text = proxylib("ipcache", "list", root=root, PROXYLIB_SOCKET=path).stdout
        assert "10.0.0.1/32         256        k8s:app=client k8s:zone=a" in text


@pytest.mark.parametrize("what", ["policy", "ct", "ipcache", "proxy", "endpoint", "metrics"])
def test_empty_maps(what: str, root: Path) -> None:
    maps.close_maps(maps.open_maps(maps.folder(root, SIZES), SIZES))
    assert rows(what, "list", root=root) == []


def test_no_maps(root: Path) -> None:
    result = CliRunner().invoke(cli, ["bpf", "ct", "list", "--bpf-root", str(root)])
    assert result.exit_code == 3
    assert f"no maps are pinned below {root}" in result.output


def test_a_folder_without_maps(root: Path) -> None:
    """As a cleanup that was cut short leaves it: no policy is not an empty policy."""
    maps.folder(root, SIZES).mkdir(parents=True)
    result = CliRunner().invoke(cli, ["bpf", "policy", "list", "--bpf-root", str(root)])
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"no maps are pinned below {root}" in result.stderr


def test_what_is_no_map(opened: dict[str, Map], root: Path) -> None:
    folder = maps.folder(root, SIZES)
    (folder / "ipcache").unlink()
    (folder / "policy").rename(folder / "ipcache")
    result = CliRunner().invoke(cli, ["bpf", "ipcache", "list", "--bpf-root", str(root)])
    assert result.exit_code == 3
    assert "is another map" in result.output
    # What is not there is empty.
    (folder / "ipcache").unlink()
    assert rows("ipcache", "list", root=root) == []
    assert len(rows("endpoint", "list", root=root)) == 2


def test_only_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = CliRunner().invoke(cli, ["bpf", "policy", "list"])
    assert result.exit_code == 3
    assert "only root may read the programs' maps: sudo proxylib bpf" in result.output


def test_a_policy_that_is_being_replaced(opened: dict[str, Map]) -> None:
    """Entries of a slot that no endpoint has are nobody's: written just now, or to be deleted."""
    say(opened, SLOT, PolicyEntry(0, True, 0, 0, 0, 1, 1))
    say(opened, 99, PolicyEntry(0, True, 0, 0, 0, 3, 3))
    assert {row["verdict"] for row in pinned.policies(opened)} == {"allow"}
