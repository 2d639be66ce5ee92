"""What happens to the attachments of endpoints, as the kernel tells it.

One netlink socket hears of the interfaces of the node and, because it listens to every namespace
that the node's has a number for, of those inside the endpoints.  An event only says whom to look
at again: what is true is read afresh (discovery.refresh), so that events which are lost, late or
out of order do no harm.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from node.links.discovery import Attachment, Gone, refresh
from node.links.namespaces import LinkError

log = logging.getLogger(__name__)

SETTLE = 0.05
"""Seconds that events are collected: a namespace that goes makes a dozen of them."""

RETRY = 1.0
"""Seconds until an attachment is looked at again that could not be."""

_STOP_TIMEOUT = 5.0
_BUFFER = 1 << 20
"""Bytes of events that may wait; beyond, everything is looked at again."""

_MESSAGE = 1 << 16
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_LISTEN_ALL_NSID = 8
_GROUPS = (1, 5, 9, 28)
"""RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_NSID."""

OnGone = Callable[[int, str], None]
OnRenamed = Callable[[int, Attachment], None]
OnAddresses = Callable[[int, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class _Watched:
    """missing: addresses that are not there. failed: why it could not be looked at last."""

    attachment: Attachment
    missing: tuple[str, ...] = ()
    failed: str = ""


class LinkWatcher:
    """Watches attachments by their endpoints' numbers, while its block lasts.

    on_gone(number, reason): the interface or the namespace is not there any more; it is watched
    no longer. on_renamed(number, attachment): as it is called now, inside or outside; or where
    its namespace is found now. on_addresses(number, missing): which of the endpoint's addresses
    its interface does not have now; empty when all are back. All are called by the watcher's
    thread, one at a time; what they raise is logged.

    Made and entered in the node's namespace: that is the one it watches. Raises LinkError if it
    may not.
    """

    def __init__(
        self, on_gone: OnGone, on_renamed: OnRenamed, on_addresses: OnAddresses | None = None
    ) -> None:
        self._on_gone, self._on_renamed = on_gone, on_renamed
        self._on_addresses = on_addresses
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._look_at: set[int] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._netlink = _listen()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)

    def __enter__(self) -> LinkWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._awake()
        self._thread.join(_STOP_TIMEOUT)
        for opened in (self._wake, self._woken, self._netlink):
            opened.close()

    @property
    def working(self) -> bool:
        """False if the watch has ended by itself, which is a fault of ours."""
        return self._stopping.is_set() or self._thread.is_alive()

    def watch(self, number: int, attachment: Attachment) -> None:
        """Watch an endpoint's attachment, in place of the one that it had.

        What has happened to it since it was found is told too.
        """
        with self._lock:
            self._watched[number] = _Watched(attachment)
            self._look_at.add(number)
        self._awake()

    def forget(self, number: int) -> None:
        """Watch an endpoint no longer. A call that is under way may still come."""
        with self._lock:
            self._watched.pop(number, None)

    def _awake(self) -> None:
        # A pipe that is full wakes as well.
        with suppress(BlockingIOError):
            self._wake.send(b"\0")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._netlink, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select(RETRY if self._look_at else None)
                self._collect()
                for number, watched in self._take():
                    self._look(number, watched)

    def _collect(self) -> None:
        """Take in what is told now, and what follows at once."""
        self._stopping.wait(SETTLE)
        with suppress(BlockingIOError):
            self._woken.recv(_MESSAGE, socket.MSG_DONTWAIT)
        for concerned in _events(self._netlink):
            with self._lock:
                self._look_at |= {n for n, w in self._watched.items() if concerned(w.attachment)}

    def _take(self) -> Sequence[tuple[int, _Watched]]:
        with self._lock:
            taken, self._look_at = self._look_at & self._watched.keys(), set()
            return [(number, self._watched[number]) for number in sorted(taken)]

    def _look(self, number: int, before: _Watched) -> None:
        addresses = before.attachment.addresses
        try:
            found = refresh(before.attachment)
        except Gone as gone:
            if self._replace(number, before, None):
                _call(self._on_gone, number, str(gone))
            return
        except Exception as error:
            # Whatever it is, the others are watched on, and this one is tried again.
            if str(error) != before.failed:
                log.exception("endpoint %d: its link cannot be looked at", number)
            self._replace(number, before, replace(before, failed=str(error)))
            with self._lock:
                self._look_at.add(number)
            return
        missing = tuple(address for address in addresses if address not in found.addresses)
        now = _Watched(replace(found, addresses=addresses), missing)
        if now == before or not self._replace(number, before, now):
            return
        if now.attachment != before.attachment:
            _call(self._on_renamed, number, now.attachment)
        if missing != before.missing and self._on_addresses is not None:
            _call(self._on_addresses, number, missing)

    def _replace(self, number: int, before: _Watched, after: _Watched | None) -> bool:
        """Keep what was found, unless the endpoint is watched elsewhere by now, or not at all."""
        with self._lock:
            if self._watched.get(number) is not before:
                return False
            if after is None:
                del self._watched[number]
            else:
                self._watched[number] = after
            return True


def _call(callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:
        log.exception("what happened to an endpoint's interface is not taken up")


def _listen() -> socket.socket:
    """A socket that hears of interfaces and addresses. Raises LinkError."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        netlink.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        netlink.bind((0, 0))
        for group in _GROUPS:
            netlink.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as error:
        netlink.close()
        raise LinkError(f"interfaces cannot be watched: {error.strerror}; be root") from error
    return netlink


def _events(netlink: socket.socket) -> Iterator[Callable[[Attachment], bool]]:
    """For each event that is waiting: whether it is about an attachment."""
    marshal = MarshalRtnl()
    while True:
        try:
            data, ancillary, _, _ = netlink.recvmsg(
                _MESSAGE, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield _anybody
            continue
        nsid = _nsid(ancillary)
        try:
            concerned = [_about(message, nsid) for message in marshal.parse(data)]
        except Exception:
            log.exception("what the kernel says of interfaces is not understood")
            concerned = [_anybody]
        yield from concerned


def _nsid(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """The namespace that an event comes from; None: the node's own."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_NETLINK, _LISTEN_ALL_NSID):
            return int(struct.unpack("i", data)[0])
    return None


def _anybody(attachment: Attachment) -> bool:
    return True


def _about(message: Any, nsid: int | None) -> Callable[[Attachment], bool]:
    if nsid is not None:
        return lambda attachment: attachment.nsid == nsid
    if "NSID" in message["event"]:
        number = message.get_attr("NETNSA_NSID")
        return lambda attachment: attachment.nsid == number
    index = message.get("index")
    return lambda attachment: attachment.ifindex == index
