"""Taking everything away that agents leave behind on purpose: programs, maps, Envoys."""

from __future__ import annotations

from contextlib import ExitStack

from bpf.errors import BpfError
from node.agent.claim import claim_namespace
from node.agent.config import AgentConfig
from node.agent.daemon import only_one
from node.agent.opening import datapath_config
from node.agent.proxies import end, known, name
from node.errors import SetupError
from xds.listening import check_socket


def clean(config: AgentConfig, *, force: bool = False) -> list[str]:
    """What was taken away, a line each. What the agent was told stays on the disk.

    Without its state directory too: what is in the kernel goes all the same. force: even if
    what is there is another network namespace's. Raises SetupError, with nothing touched, if
    an agent runs or it is; and if something cannot be taken away.
    """
    with ExitStack() as held:
        try:
            if config.state_dir.is_dir():
                held.enter_context(only_one(config.state_dir / "lock"))
            return _clean(config, held, force)
        except BpfError as error:
            raise SetupError(str(error)) from error
        except OSError as error:
            where = error.filename or config.state_dir
            raise SetupError(f"{where}: cannot be cleaned up: {error.strerror}") from error


def _clean(config: AgentConfig, held: ExitStack, force: bool) -> list[str]:
    from bpf import sockmap
    from bpf.cleanup import check_namespace, cleanup

    # An agent with another state directory has another lock.
    held.enter_context(claim_namespace())
    places = (config.api_path, config.xds_path, config.access_log_path)
    sockets = [path for path in places if path.is_socket()]
    for path in sockets:
        check_socket(path)
    data_path = datapath_config(config)
    if not force:
        check_namespace(data_path)
    # First the programs: without an Envoy they would close what they redirect.
    done = [f"pins in {path}" for path in sockmap.cleanup(config.bpf_root)]
    done += cleanup(data_path)
    for number in known(config.state_dir):
        ended = end(config.state_dir, config.run_dir, number)
        done += [f"{name(number)}, process {pid}" for pid in ended]
    for path in sockets:
        path.unlink(missing_ok=True)
        done.append(f"socket {path}")
    return done
