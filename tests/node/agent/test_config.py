"""Where settings come from, and which of them counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.agent.config import AgentConfig, default_socket, load_config
from node.errors import UsageError


def test_precedence(tmp_path: Path) -> None:
    names = ("flag", "variable", "key", "file")
    folder = tmp_path / "config.d"
    folder.mkdir()
    (folder / "node-name").write_text("key\n")
    (folder / "policy-dir").write_text("/key")
    (folder / "proxy-ports").write_text("5-6\n")
    (folder / "..data").write_text("a link of a ConfigMap's")
    file = tmp_path / "agent.yaml"
    file.write_text("node-name: file\npolicy-dir: /file\nproxy-ports: 7-8\nnode-ip: 10.0.0.9\n")
    environment = {"PROXYLIB_NODE_NAME": "variable", "PROXYLIB_POLICY_DIR": "/variable"}

    def load(flags: dict[str, object]) -> AgentConfig:
        return load_config(flags, config=file, config_dir=folder, environment=environment)

    assert load({"node_name": names[0]}).node_name == "flag"
    config = load({"node_name": None})
    assert config.node_name == "variable"
    assert config.policy_dir == Path("/variable")
    assert config.proxy_ports == (5, 6)
    assert config.node_ip == "10.0.0.9"
    assert config.settings()["proxy-ports"] == "5-6"


def test_every_error_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("polcy-dir: /x\nproxy-ports: 9-3\n")
    with pytest.raises(UsageError) as raised:
        load_config({"socket_group": "no-such-group"}, config=file, environment={})
    text = str(raised.value)
    assert f"polcy-dir: there is no such setting; did you mean 'policy-dir'? in {file}" in text
    assert f"proxy-ports: '9-3' is not a range of ports such as 10000-20000 in {file}" in text
    assert "socket-group: there is no group 'no-such-group' in the command line" in text


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "x: 1\n---\ny: 2\n"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"agent\.yaml"):
        load_config({}, config=file, environment={})


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        load_config({}, config=tmp_path / "nothing", environment={})
    with pytest.raises(UsageError, match="cannot be read"):
        load_config({}, config_dir=tmp_path / "nothing", environment={})


def test_sockets_are_different(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="three sockets"):
        load_config({"socket": "/x", "xds_socket": "/x"}, environment={})


def test_defaults() -> None:
    config = load_config({}, environment={})
    assert config.api_path.name == "proxylib.sock"
    assert config.policy_dir is None
    assert config.proxy_ports == (10000, 20000)
    assert config.socket_group is None


def test_the_commands_find_the_agents_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROXYLIB_SOCKET", raising=False)
    assert default_socket() == load_config({}, environment={}).api_path
    monkeypatch.setenv("PROXYLIB_SOCKET", "/somewhere")
    assert default_socket() == Path("/somewhere")
    assert load_config({}, environment=dict(os.environ)).api_path == Path("/somewhere")


@pytest.mark.parametrize(
    ("text", "server"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:65535", ("::1", 65535))],
)
def test_the_upstream_is_numeric(text: str, server: tuple[str, int]) -> None:
    assert load_config({"upstream": text}, environment={}).upstream_server == server


@pytest.mark.parametrize("text", ["web:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ":80"])
def test_what_is_no_upstream(text: str) -> None:
    with pytest.raises(UsageError, match="is no IP:PORT"):
        load_config({"upstream": text}, environment={})


def test_the_datapath_is_told_what_it_may_use() -> None:
    config = load_config({}, environment={"PROXYLIB_BPF_CT_GLOBAL_MAX": "4096"})
    assert (config.datapath, config.envoy, config.bpf_policy_map_max) == ("auto", "auto", 16384)
    assert config.bpf_ct_global_max == 4096
    assert config.settings()["bpf-root"] == "/sys/fs/bpf/proxylib"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"datapath": "veths"}, "datapath: Input should be 'auto', 'veth' or 'none'"),
        ({"envoy": "bin/envoy"}, "envoy: 'bin/envoy' is not auto, none, or the whole path"),
        ({"bpf_policy_map_max": "65537"}, "bpf-policy-map-max: .* less than or equal to 65536"),
        ({"bpf_ct_global_max": "many"}, "bpf-ct-global-max: .* valid integer"),
        ({"datapath": "veth", "upstream": "127.0.0.1:1"}, "with upstream, redirects have plain"),
    ],
)
def test_settings_of_the_datapath_are_checked(flags: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load_config(flags, environment={})


@pytest.mark.parametrize("text", ["x", "10.0.0.256", "10.0.0.0/8", "", "node.example"])
def test_the_nodes_own_address_is_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"node-ip: .* is not an IP address in the command line"):
        load_config({"node_ip": text}, environment={})


def test_the_nodes_own_address_is_written_one_way() -> None:
    assert load_config({"node_ip": "FD00:0::1"}, environment={}).node_ip == "fd00::1"
