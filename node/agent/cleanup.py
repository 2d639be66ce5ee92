"""Taking everything away that agents leave behind on purpose: programs, maps, Envoys."""

from __future__ import annotations

from bpf.errors import BpfError
from node.agent.config import AgentConfig
from node.agent.daemon import only_one
from node.agent.opening import datapath_config
from node.agent.proxies import end, known, name
from node.errors import SetupError


def clean(config: AgentConfig) -> list[str]:
    """What was taken away, a line each. What the agent was told stays on the disk.

    Raises SetupError if an agent runs, or if something cannot be taken away.
    """
    from bpf import sockmap
    from bpf.cleanup import cleanup

    done: list[str] = []
    if not config.state_dir.is_dir():
        return done
    with only_one(config.state_dir / "lock"):
        # First the programs: without an Envoy they would close what they redirect.
        try:
            done += [f"pins in {path}" for path in sockmap.cleanup(config.bpf_root)]
            done += cleanup(datapath_config(config))
        except BpfError as error:
            raise SetupError(str(error)) from error
        for number in known(config.state_dir):
            ended = end(config.state_dir, config.run_dir, number)
            done += [f"{name(number)}, process {pid}" for pid in ended]
        for path in (config.api_path, config.xds_path, config.access_log_path):
            if path.is_socket():
                path.unlink()
                done.append(f"socket {path}")
    return done
