"""The lab: a node and its endpoints as network namespaces, made in milliseconds.

A `Lab` is a context manager.  It makes a *node* namespace that routes between its endpoints, and
for each endpoint a namespace of its own behind a **routed veth**: the endpoint has a /32 and a
/128 address and a default route to the node, as behind Cilium or Calico; no bridge, and nothing in
the machine's own namespace.  A host *outside* the node is optional::

    with Lab("client", "server", outside=True) as lab:
        lab["server"].popen("nginx", ...)
        assert lab["client"].http_code(f"http://{lab['server'].ipv4}/") == "200"
        with lab["client"].entered():
            connection = socket.create_connection((lab["server"].ipv6, 80))

What was started in a namespace is ended, by its process id, and everything is removed when the
block ends.  A lab whose process was killed is removed by the next one: names carry the process id
and the start time of their owner.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from demos.servers.maven import Missing
from node.errors import SetupError

NAMES = Path("/run/netns")
"""Where ``ip netns`` keeps namespaces by name."""

PREFIX = "proxylib"
TERM_TIMEOUT = 3.0
"""Seconds that a process has to end on SIGTERM."""

NODE_IPV4, NODE_IPV6 = "10.1.0.1", "fd10:1::1"
OUTSIDE_IPV4, OUTSIDE_IPV6 = "192.0.2.2", "fd20::2"
_UPLINK_IPV4, _UPLINK_IPV6 = "192.0.2.1", "fd20::1"
GATEWAY_IPV6 = "fe80::1"
"""The node, for neighbours: on the node's end of every veth. With IPv4 it is `NODE_IPV4`."""

UPLINK = "ext0"
"""The node's interface to the host outside."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_labs = itertools.count()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace and what runs in it."""

    name: str
    netns: str
    """What ``ip netns`` calls it."""
    ipv4: str
    ipv6: str
    processes: list[subprocess.Popen[Any]] = field(default_factory=list, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """A file that is the namespace, as setns(2) and ``nsenter --net=`` take it."""
        return NAMES / self.netns

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace until the block ends.

        So are the sockets that it makes and the threads and processes that it starts in the
        block, for as long as they live. Nothing of asyncio may be awaited in it.
        """
        with open("/proc/thread-self/ns/net", "rb") as home:
            with self.path.open("rb") as there:
                _setns(there)
            try:
                yield
            finally:
                _setns(home)

    def popen(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the namespace; it ends with the lab at the latest."""
        with self.entered():
            process = subprocess.Popen([str(word) for word in command], **options)
        self.processes.append(process)
        return process

    def run(
        self, *command: str | Path, timeout: float = 60, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace to its end; its output is kept as text."""
        words = [str(word) for word in command]
        options = {"capture_output": True, "text": True, **options}
        with self.entered():
            return subprocess.run(words, timeout=timeout, check=check, **options)

    def http_code(self, url: str, *options: str, timeout: float = 2.0) -> str:
        """What ``curl -w '%{http_code}'`` prints: the status, 000 where there is no answer."""
        quiet = ("-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*")
        return self.run("curl", *quiet, "--max-time", str(timeout), *options, url).stdout

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip -batch`` in the namespace. Raises SetupError."""
        _batch(("-n", self.netns), lines)

    def sysctl(self, name: str, value: object = None) -> str:
        """Read a setting below net, as ``ipv4/ip_forward``; with a value, set it first."""
        path = Path("/proc/sys/net", name)
        with self.entered():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def ifindex(self, interface: str = "eth0") -> int:
        """The number of an interface of the namespace. Raises OSError if there is none."""
        with self.entered():
            return socket.if_nametoindex(interface)

    def pids(self) -> list[int]:
        """The processes in the namespace, whoever started them; ourselves are left out."""
        try:
            wanted = self.path.stat()
        except OSError:  # it is gone, or was never made
            return []
        return _pids_in(wanted)

    def end(self) -> None:
        """End what runs in the namespace."""
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + TERM_TIMEOUT
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        _kill(self.pids())


@dataclass(frozen=True, slots=True)
class Endpoint(Namespace):
    """A namespace behind a veth; inside it, the interface is ``eth0``."""

    number: int = 0
    interface: str = ""
    """The node's end of the veth."""

    @property
    def mac(self) -> str:
        """The address of eth0."""
        return _mac(self.number, 2)

    @property
    def gateway_mac(self) -> str:
        """The address of the node's end."""
        return _mac(self.number, 1)


class Lab:
    """A node, its endpoints by name, and a host outside. See the module's docstring.

    Raises Missing where namespaces cannot be had (no root, no ``ip``); SetupError if ``ip`` fails.
    """

    def __init__(self, *endpoints: str, outside: bool = False, mtu: int = 1500) -> None:
        self._names, self._with_outside, self._mtu = endpoints, outside, mtu
        self._name = f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}-{next(_labs)}"
        self._exit = ExitStack()
        self._endpoints: dict[str, Endpoint] = {}

    def __enter__(self) -> Lab:
        check()
        remove_leftovers()
        with ExitStack() as stack:
            self.folder = Path(tempfile.gettempdir(), self._name)
            self.folder.mkdir(mode=0o755)
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.node = self._make_node(stack)
            if self._with_outside:
                self.outside = self._make_outside(stack)
            self._exit = stack.pop_all()
        try:
            for name in self._names:
                self.add(name)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._endpoints.clear()
        self._exit.close()

    def __getitem__(self, name: str) -> Endpoint:
        return self._endpoints[name]

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())

    def add(self, name: str) -> Endpoint:
        """One more endpoint. Raises SetupError."""
        if name in self._endpoints:
            raise SetupError(f"the lab has an endpoint {name!r} already")
        number = len(self._endpoints) + 1
        made = Endpoint(
            name,
            f"{self._name}-{name}",
            f"10.1.{(number + 1) >> 8}.{(number + 1) & 255}",
            f"fd10:1::{number + 1:x}",
            number=number,
            interface=f"lxc{number}",
        )
        self._connect(made, self._exit)
        made.ip(
            f"addr add {made.ipv4}/32 dev eth0",
            f"addr add {made.ipv6}/128 dev eth0 nodad",
            f"route add {NODE_IPV4} dev eth0 scope link",
            f"route add default via {NODE_IPV4} dev eth0",
            f"route add default via {GATEWAY_IPV6} dev eth0",
        )
        self.node.ip(
            f"addr add {GATEWAY_IPV6}/64 dev {made.interface} nodad",
            f"route add {made.ipv4}/32 dev {made.interface} src {NODE_IPV4}",
            f"route add {made.ipv6}/128 dev {made.interface} src {NODE_IPV6}",
        )
        self._endpoints[name] = made
        return made

    def bpffs(self) -> Path:
        """A BPF file system of the lab's own, mounted below its folder."""
        path = self.folder / "bpf"
        if not path.exists():
            path.mkdir()
            _run("mount", "-t", "bpf", "bpf", str(path))
            self._exit.callback(_run, "umount", "--lazy", str(path))
        return path

    def _make_node(self, stack: ExitStack) -> Namespace:
        node = Namespace("node", f"{self._name}-node", NODE_IPV4, NODE_IPV6)
        stack.callback(_remove, node)
        try:
            _batch((), (f"netns add {node.netns}",))
        except SetupError as error:
            raise Missing(f"network namespaces cannot be made here: {error}") from error
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            node.sysctl(setting, 1)
        node.sysctl("ipv6/conf/default/accept_dad", 0)
        node.ip(
            "link set lo up",
            f"addr add {NODE_IPV4}/32 dev lo",
            f"addr add {NODE_IPV6}/128 dev lo nodad",
        )
        return node

    def _make_outside(self, stack: ExitStack) -> Endpoint:
        made = Endpoint(
            "outside", f"{self._name}-outside", OUTSIDE_IPV4, OUTSIDE_IPV6, interface=UPLINK
        )
        self._connect(made, stack)
        made.ip(
            f"addr add {OUTSIDE_IPV4}/24 dev eth0",
            f"addr add {OUTSIDE_IPV6}/64 dev eth0 nodad",
            f"route add default via {_UPLINK_IPV4} dev eth0",
            f"route add default via {_UPLINK_IPV6} dev eth0",
        )
        self.node.ip(
            f"addr add {_UPLINK_IPV4}/24 dev {UPLINK}",
            f"addr add {_UPLINK_IPV6}/64 dev {UPLINK} nodad",
        )
        return made

    def _connect(self, made: Endpoint, stack: ExitStack) -> None:
        """The namespace and the veth to it, up, without addresses."""
        stack.callback(_remove, made)
        _batch(
            (),
            (
                f"netns add {made.netns}",
                f"link add name {made.interface} netns {self.node.netns} mtu {self._mtu} "
                f"address {made.gateway_mac} type veth peer name eth0 netns {made.netns} "
                f"mtu {self._mtu} address {made.mac}",
            ),
        )
        # Duplicate address detection takes a second; routers are not asked for.
        for setting, value in (("accept_dad", 0), ("router_solicitations", 0)):
            made.sysctl(f"ipv6/conf/eth0/{setting}", value)
        made.ip("link set lo up", "link set eth0 up")
        self.node.ip(f"link set {made.interface} up")


def check() -> None:
    """Raises Missing where namespaces cannot be made: what is missing, and how to get it."""
    if os.geteuid() != 0:
        raise Missing("network namespaces need root: run this as root")
    if _ip() is None:
        raise Missing("ip is not installed (Debian: apt install iproute2)")


def remove_leftovers() -> None:
    """Remove the labs whose process is gone."""
    for path in NAMES.glob(f"{PREFIX}-*"):
        if _is_left_over(path.name):
            _remove(Namespace(path.name, path.name, "", ""))
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if _is_left_over(path.name):
            if (path / "bpf").is_mount():
                _run("umount", "--lazy", str(path / "bpf"))
            shutil.rmtree(path, ignore_errors=True)


def _is_left_over(name: str) -> bool:
    parts = name.split("-")
    ours = len(parts) >= 4 and all(part.isdigit() for part in parts[1:4])
    return ours and _started(int(parts[1])) != int(parts[2])


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since boot; -1 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The second field, a name in parentheses, may hold anything.
    return int(stat.rpartition(")")[2].split()[19])


def _remove(namespace: Namespace) -> None:
    namespace.end()
    # It may be gone: a test took it away, or another lab removed the same leftovers.
    with suppress(SetupError):
        _batch((), (f"netns del {namespace.netns}",))


def _pids_in(wanted: os.stat_result) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            there = os.stat(f"/proc/{entry.name}/ns/net")
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def _kill(pids: Sequence[int]) -> None:
    """End processes that we may not be the parent of, and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], TERM_TIMEOUT)
            finally:
                os.close(handle)


def _mac(number: int, side: int) -> str:
    return f"02:00:00:{number >> 8:02x}:{number & 255:02x}:{side:02x}"


def _ip() -> str | None:
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def _batch(where: Sequence[str], lines: Sequence[str]) -> None:
    _run(_ip() or "ip", *where, "-batch", "-", text="\n".join(lines) + "\n")


def _run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} failed: {done.stderr.strip()}\n{text}".rstrip())


def _setns(namespace: IO[bytes]) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}", namespace.name)
