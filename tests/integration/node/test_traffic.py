"""What the other tests measure with, where nothing is in the way."""

from __future__ import annotations

from tests.conftest import MakeLab
from tests.integration.node.traffic import (
    NO_ANSWER,
    SILENCE,
    Pages,
    Talk,
    datagram,
    datagrams,
    fetch,
    lines,
    web,
)


def test_servers_and_clients_see_each_other(make_lab: MakeLab) -> None:
    lab = make_lab("client", "server", outside=True)
    client, server = lab["client"], lab["server"]
    for version in ("ipv4", "ipv6"):
        address, own = getattr(server, version), getattr(client, version)
        with web(server, address), lines(server, address), datagrams(server, address):
            assert fetch(client, address) == f"200 {own}"
            assert fetch(lab.outside, address) == f"200 {getattr(lab.outside, version)}"
            assert datagram(client, address) == "answered"
            with Talk(client, address) as talk:
                assert talk.seen_as == own
                assert [talk.say("a"), talk.say("b")] == ["a", "b"]
            with Pages(client, address) as pages:
                assert [pages.get("/"), pages.get("/bytes/100000")] == ["200", "200"]
    assert fetch(client, server.ipv4) == "ConnectionRefusedError: [Errno 111] Connection refused"
    lab.node.ip(f"route del {server.ipv4}/32 dev {server.interface}")
    lab.node.ip(f"route add blackhole {server.ipv4}/32")
    assert datagram(client, server.ipv4, timeout=SILENCE) == NO_ANSWER
