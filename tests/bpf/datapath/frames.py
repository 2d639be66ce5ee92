"""Frames, right and wrong: every header's fields can be told, and lied about."""

from __future__ import annotations

import struct
from ipaddress import ip_address

BROADCAST = b"\xff" * 6
IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8

SYN, ACK, FIN, RST = 0x02, 0x10, 0x01, 0x04


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(
    payload: bytes, kind: int = IPV4, to: bytes = BROADCAST, of: bytes = bytes(6)
) -> bytes:
    return to + of + struct.pack("!H", kind) + payload


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    version: int = 4,
    ihl: int = -1,
    length: int = -1,
    fragment: int = 0,
    number: int = 7,
    options: bytes = b"",
) -> bytes:
    """fragment: the field, flags and offset."""
    ihl = 5 + len(options) // 4 if ihl < 0 else ihl
    length = 20 + len(options) + len(payload) if length < 0 else length
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | ihl,
        0,
        length,
        number,
        fragment,
        64,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    head = head[:10] + struct.pack("!H", checksum(head + options)) + head[12:]
    return head + options + payload


def ipv6(
    source: str,
    destination: str,
    following: int,
    payload: bytes,
    *,
    version: int = 6,
    length: int = -1,
    hops: int = 64,
) -> bytes:
    length = len(payload) if length < 0 else length
    return (
        struct.pack("!IHBB", version << 28, length, following, hops)
        + ip_address(source).packed
        + ip_address(destination).packed
        + payload
    )


def ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    """A frame of the addresses' family."""
    if ":" in source:
        return ethernet(ipv6(source, destination, protocol, payload), IPV6)
    return ethernet(ipv4(source, destination, protocol, payload))


def tcp(
    source: int, destination: int, flags: int = SYN, data: bytes = b"", offset: int = 5
) -> bytes:
    return (
        struct.pack("!HHIIBBHHH", source, destination, 1, 1, offset << 4, flags, 1000, 0, 0) + data
    )


def udp(source: int, destination: int, data: bytes = b"", length: int = -1) -> bytes:
    length = 8 + len(data) if length < 0 else length
    return struct.pack("!HHHH", source, destination, length, 0) + data


def icmp(kind: int, code: int = 0, number: int = 9, data: bytes = b"", rest: int = 1) -> bytes:
    head = struct.pack("!BBHHH", kind, code, 0, number, rest)
    return head[:2] + struct.pack("!H", checksum(head + data)) + head[4:] + data


def extension(following: int, data: bytes = bytes(6)) -> bytes:
    """A hop-by-hop, routing or destination options header; data: 6 bytes and 8 n more."""
    return struct.pack("!BB", following, (len(data) - 6) // 8) + data


def fragment_header(following: int, offset: int, more: bool, number: int = 7) -> bytes:
    """offset: in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, number)
