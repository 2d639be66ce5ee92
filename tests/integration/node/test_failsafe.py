"""What is killed: the agent, and Envoy. What was decided stays in force, and nothing opens."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demos.namespaces import Lab
from demos.node.agent import PROXYLIB, ROOT, NodeAgent
from node.errors import SetupError
from tests.integration.node.site import Site, apps, eventually, http, policy, ports, site
from tests.integration.node.traffic import SILENCE, Pages, Talk, fetch, lines, silent, web
from tests.node.agents import http_client

LINES = 7000

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def made() -> Iterator[Site]:
    """A node of each test's own: it is not as it was afterwards."""
    with Lab("client", "server", "other") as lab, ExitStack() as stack:
        server = lab["server"]
        for address in (server.ipv4, server.ipv6):
            stack.enter_context(web(server, address))
            stack.enter_context(lines(server, address))
        yield stack.enter_context(site(lab))


def rules(*paths: str, talkers: tuple[str, ...] = ("client",)) -> list[dict[str, Any]]:
    """A parser judges the client's pages; lines are for talkers, without one."""
    of = apps("fromEndpoints", "client")
    return [
        policy("pages", "server", ingress=[{**of, **ports(80, http=http(*paths))}]),
        policy("lines", "server", ingress=[{**apps("fromEndpoints", *talkers), **ports(LINES)}]),
    ]


@contextmanager
def over_and_over(act: Callable[[], Any]) -> Iterator[Counter[Any]]:
    """Does it in a thread for as long as the block lasts; what it came to, and how often."""
    results: Counter[Any] = Counter()
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            results[act()] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        ended.set()
        thread.join()


def test_the_agent_is_killed_and_the_next_takes_over(made: Site) -> None:
    made.policies(*rules("/a"))
    lab, address = made.lab, made.lab["server"].ipv4
    client, other = lab["client"], lab["other"]
    envoys = made.agent.envoys()
    assert len(envoys) == 1
    own = f"200 {client.ipv4}"
    with (
        Talk(client, address) as talk,
        Pages(client, address) as pages,
        over_and_over(lambda: fetch(client, address, "/a")) as allowed,
        over_and_over(lambda: fetch(client, address, "/b")) as denied,
        over_and_over(lambda: silent(other, address, "/a")) as dropped,
        over_and_over(lambda: silent(other, lab["server"].ipv6, port=LINES)) as dropped6,
    ):
        assert [talk.say("one"), pages.get("/a"), pages.get("/b")] == ["one", "200", "403"]
        made.agent.kill()
        for _ in range(20):
            assert [talk.say("two"), pages.get("/a"), pages.get("/b")] == ["two", "200", "403"]
            time.sleep(0.05)
        made.agent.start()
        assert [talk.say("three"), pages.get("/a"), pages.get("/b")] == ["three", "200", "403"]
        eventually(made.agent.envoys, envoys)
        made.wait_ready()
        made.agent.kill()
        made.agent.start()
        made.wait_ready()
        assert [talk.say("four"), pages.get("/a"), pages.get("/b")] == ["four", "200", "403"]
    assert set(allowed) == {own}
    assert set(denied) == {"403"}
    assert set(dropped) == {True}
    assert set(dropped6) == {True}
    assert min(allowed[own], denied["403"]) > 20
    # The next one is in charge.
    with http_client(made.agent.socket) as made.http:
        made.policies(*rules("/b", talkers=("other",)))
        eventually(lambda: fetch(client, address, "/a"), "403")
        assert fetch(client, address, "/b") == own
        with Talk(other, address) as talk:
            assert talk.say("hello") == "hello"


def test_an_agent_that_ends_in_order_leaves_its_decisions_in_force(made: Site) -> None:
    made.policies(*rules("/a"))
    client, other, address = made.lab["client"], made.lab["other"], made.lab["server"].ipv6
    assert made.agent.stop() == 0
    assert fetch(client, address, "/a") == f"200 {client.ipv6}"
    assert fetch(client, address, "/b") == "403"
    assert silent(other, address, "/a")
    made.agent.start()


def test_envoy_is_killed_and_comes_back(made: Site) -> None:
    """What needs a parser is closed, never open; what needs none does not notice."""
    made.policies(*rules("/a"))
    client, address = made.lab["client"], made.lab["server"].ipv4
    own = f"200 {client.ipv4}"
    with (
        Talk(client, address) as talk,
        Pages(client, address) as pages,
        over_and_over(lambda: fetch(client, address, "/b", timeout=SILENCE)) as denied,
        over_and_over(lambda: talk.say("x")) as said,
    ):
        assert pages.get("/a") == "200"
        for _ in range(3):
            (before,) = made.agent.envoys()
            os.kill(before, signal.SIGKILL)
            assert pages.get("/a", SILENCE) not in ("200", "403")
            eventually(lambda: fetch(client, address, "/a", timeout=SILENCE), own)
            (after,) = made.agent.envoys()
            assert after != before
            pages.reopen()
    assert set(said) == {"x"}
    assert denied["403"] > 3
    assert not [result for result in denied if result.startswith("200")]


def test_a_sidecar_is_killed_outlives_the_agent_and_goes_with_its_endpoint() -> None:
    with (
        Lab("client", "server", "other") as lab,
        web(lab["server"], lab["server"].ipv4),
        lines(lab["server"], lab["server"].ipv4),
        site(lab, mode="sidecar") as made,
    ):
        made.policies(*rules("/a"))
        client, address = lab["client"], lab["server"].ipv4
        own = f"200 {client.ipv4}"
        (before,) = made.agent.envoys()
        assert before in lab["server"].pids()
        with Talk(client, address) as talk:
            os.kill(before, signal.SIGKILL)
            eventually(lambda: fetch(client, address, "/a", timeout=SILENCE), own)
            assert talk.say("x") == "x"
        made.agent.kill()
        assert [fetch(client, address, path) for path in ("/a", "/b")] == [own, "403"]
        assert silent(lab["other"], address, "/a")
        (envoy,) = made.agent.envoys()
        made.agent.start()
        made.wait_ready()
        # For a moment there is a process that only says which release it is.
        eventually(made.agent.envoys, [envoy])
        assert fetch(client, address, "/b") == "403"
        assert made.http.delete(f"/endpoint/{made.numbers['server']}").is_success
        eventually(made.agent.envoys, [])
        made.agent.stop()
        made.agent.cleanup()
        assert made.agent.left() == []


def test_without_agent_and_envoy_nothing_opens(made: Site) -> None:
    made.policies(*rules("/a"))
    client, other, address = made.lab["client"], made.lab["other"], made.lab["server"].ipv4
    with Talk(client, address) as talk:
        made.agent.kill()
        for pid in made.agent.envoys():
            os.kill(pid, signal.SIGKILL)
        for path in ("/a", "/b"):
            assert not fetch(client, address, path, timeout=SILENCE).startswith(("200", "403"))
        assert silent(other, address, "/a")
        assert talk.say("still here") == "still here"
        made.agent.start()
        eventually(lambda: fetch(client, address, "/a"), f"200 {client.ipv4}")
        assert fetch(client, address, "/b") == "403"
        assert talk.say("and now") == "and now"


def test_a_second_agent_is_refused(made: Site) -> None:
    made.policies(*rules("/a"))
    lab, agent = made.lab, made.agent
    with pytest.raises(SetupError, match="another agent"):
        agent.proxylib("agent", *agent.places())
    elsewhere = lab.folder / "second"
    places = ("--state-dir", elsewhere / "state", "--run-dir", elsewhere / "run")
    places = (*places, "--socket", elsewhere / "run/proxylib.sock")
    with pytest.raises(SetupError, match="another agent"):
        agent.proxylib("agent", *places, "--bpf-root", agent.bpf_root, "--datapath", "veth")
    client, address = lab["client"], lab["server"].ipv4
    assert fetch(client, address, "/a") == f"200 {client.ipv4}"
    assert fetch(client, address, "/b") == "403"
    assert made.status()


def test_cleanup_leaves_nothing(made: Site) -> None:
    lab, agent = made.lab, made.agent
    settings = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter")
    made.policies(*rules("/a"))
    client, address = lab["client"], lab["server"].ipv4
    assert fetch(client, address, "/b") == "403"
    assert agent.left()
    agent.stop()
    agent.cleanup()
    assert agent.left() == []
    assert [lab.node.sysctl(name) for name in settings] == ["1", "1", "0"]
    assert fetch(lab["other"], address, "/b") == f"200 {lab['other'].ipv4}"
    # Once more finds nothing to do.
    agent.cleanup()


def test_cleanup_puts_settings_back() -> None:
    with Lab("client", "server") as lab:
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            lab.node.sysctl(setting, 0)
        lab.node.sysctl("ipv4/conf/all/rp_filter", 2)
        with site(lab) as made, web(lab["server"], lab["server"].ipv4):
            made.policies(policy("in", "server", ingress=[apps("fromEndpoints", "client")]))
            client = lab["client"]
            assert fetch(client, lab["server"].ipv4) == f"200 {client.ipv4}"
            assert lab.node.sysctl("ipv4/ip_forward") == "1"
            made.agent.kill()
            made.agent.cleanup()
            made.agent.start()
            made.agent.stop()
            made.agent.cleanup()
        assert lab.node.sysctl("ipv4/ip_forward") == "0"
        assert lab.node.sysctl("ipv6/conf/all/forwarding") == "0"
        assert lab.node.sysctl("ipv4/conf/all/rp_filter") == "2"


def test_a_proxy_port_that_somebody_has(made: Site) -> None:
    """Envoy cannot listen there: the redirect gets another one, and is closed until then."""
    with ExitStack() as stack:
        for port in (10000, 10001):
            for address in ("127.0.0.1", "::1"):
                stack.enter_context(web(made.lab.node, address, port))
        made.policies(*rules("/a"))
        client, address = made.lab["client"], made.lab["server"].ipv4
        assert fetch(client, address, "/a") == f"200 {client.ipv4}"
        assert fetch(client, address, "/b") == "403"


def test_an_l4_policy_starts_no_proxy(made: Site) -> None:
    made.policies(*rules("/a")[1:])
    with Talk(made.lab["client"], made.lab["server"].ipv4) as talk:
        assert talk.say("x") == "x"
    assert made.agent.envoys() == []


def _start(agent: NodeAgent) -> str:
    """Why it does not start; empty if it does."""
    try:
        agent.start()
    except SetupError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["state.db", "identities.db", "proxy-ports.json", "envoy"])
def test_a_state_file_that_was_cut_short(made: Site, name: str) -> None:
    """Either the agent says what is wrong with it and does not start, or it is as it was.

    In no case is anything open, or what was open closed.
    """
    made.policies(*rules("/a"))
    made.agent.kill()
    cut = [path for path in made.agent.state_dir.rglob("*") if path.name.startswith(name)]
    cut = [path for path in cut if path.is_file() and path.stat().st_size]
    assert cut
    for path in cut:
        os.truncate(path, path.stat().st_size // 2)
    why = _start(made.agent)
    assert not why or str(made.agent.state_dir) in why
    assert "Traceback" not in why
    client, other, address = made.lab["client"], made.lab["other"], made.lab["server"].ipv4
    eventually(lambda: fetch(client, address, "/a"), f"200 {client.ipv4}")
    assert fetch(client, address, "/b") == "403"
    assert silent(other, address, "/a")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bpf-root", "/tmp/no-bpffs"), "bpf"),
        (("--bpf-policy-map-max", "0"), "policy-map-max"),
    ],
)
def test_what_is_missing_is_told(flags: tuple[str, ...], said: str) -> None:
    with Lab() as lab, pytest.raises(SetupError, match=said) as failed, NodeAgent(lab, *flags):
        pass
    assert "Traceback" not in str(failed.value)


def test_an_envoy_that_is_not_there() -> None:
    """What needs it is closed, and the agent says why."""
    with (
        Lab("client", "server") as lab,
        web(lab["server"], lab["server"].ipv4),
        site(lab, "--envoy", "/nowhere/envoy") as made,
    ):
        assert fetch(lab["client"], lab["server"].ipv4) == f"200 {lab['client'].ipv4}"
        made.policies(*rules("/a"), ready=False)
        eventually(lambda: silent(lab["client"], lab["server"].ipv4, "/a"), True)
        eventually(lambda: "/nowhere/envoy" in made.cli("status", status=None), True)


def test_without_rights_it_is_told(tmp_path: Path) -> None:
    with Lab() as lab:
        agent = NodeAgent(lab)
        lab.folder.chmod(0o777)
        done = lab.node.run(
            *("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *PROXYLIB),
            *("agent", *map(str, agent.places()), "--datapath", "veth"),
            cwd=ROOT,
        )
    assert done.returncode in (2, 3), done.stderr
    assert "root" in done.stderr or "CAP_" in done.stderr
    assert "Traceback" not in done.stderr
