"""Addresses as users write them."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.address import Address, check_listen
from node.errors import NodeError, SetupError, UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("[::1]:11211", "::1", 11211),
        ("memcached.local:11211", "memcached.local", 11211),
        ("my_host:1", "my_host", 1),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no port"),
        ("127.0.0.1", "no port; write HOST:PORT"),
        ("127.0.0.1:", "the port '' is not a number"),
        ("127.0.0.1:x", "the port 'x' is not a number"),
        ("127.0.0.1:-1", "the port '-1' is not a number"),
        ("127.0.0.1:\u0661", "is not a number"),
        ("127.0.0.1:0", "from 1 to 65535"),
        ("127.0.0.1:65536", "from 1 to 65535"),
        ("127.0.0.1:" + "9" * 5000, "from 1 to 65535"),
        (":80", "no host"),
        ("256.0.0.1:80", "not an IPv4 address"),
        ("127.1:80", "not an IPv4 address"),
        ("::1:80", "put an IPv6 address in brackets"),
        ("[::1]", r"written \[::1\]:PORT"),
        ("[::1", r"written \[::1\]:PORT"),
        ("[::x]:80", "not an IPv6 address"),
        ("http://a:80", "put an IPv6 address in brackets"),
        ("a b:80", "neither an address nor a host name"),
        ("a\0:80", "neither an address nor a host name"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Address.parse(text)


def test_port_0_where_any_port_will_do() -> None:
    assert Address.parse("127.0.0.1:0", any_port=True).port == 0


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except UsageError:
        return
    assert Address.parse(str(address)) == address


def test_names_are_looked_up() -> None:
    assert Address("localhost", 5).resolve().host in ("127.0.0.1", "::1")
    assert Address("::0:1", 5).resolve() == Address("::1", 5)
    with pytest.raises(UsageError, match=r"the name 'nowhere\.invalid' has no address"):
        Address("nowhere.invalid", 5).resolve()


def test_a_port_in_use_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(SetupError, match=f"cannot listen on {address}: the port is in use"):
            check_listen(address)
    check_listen(address)


def test_a_port_that_would_be_shared_is_in_use_too() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError, match="in use"):
            check_listen(Address("127.0.0.1", taken.getsockname()[1]))


def test_an_address_of_somebody_else() -> None:
    with pytest.raises(SetupError, match="this machine has no such address"):
        check_listen(Address("192.0.2.1", 4000))
    assert issubclass(SetupError, NodeError)
