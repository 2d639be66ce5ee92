"""The policy of docs/redis.md is one that loads, and judges as the page says."""

from __future__ import annotations

from pathlib import Path

import yaml

from proxylib.testing import Host

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"


def test_the_policy_judges_as_told() -> None:
    text = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    (ports,) = yaml.safe_load(text)["toPorts"]
    assert ports["rules"]["l7proto"] == "redis"
    host = Host("redis", ports["rules"]["l7"])
    allowed = b"GET app:a\r\nset app:b 1\r\nPING\r\nconfig get x\r\n"
    assert host.client(allowed) == allowed
    denied = (
        b"GET a\r\nFLUSHALL\r\nSCAN 0\r\nSORT app:a BY w_*\r\nEVAL x 1 app:a\r\nCONFIG SET x y\r\n"
    )
    assert host.client(denied) == b""
    assert host.server(b"$-1\r\n+OK\r\n+PONG\r\n*0\r\n").count(b"-NOPERM") == 6
