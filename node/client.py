"""The command line's end of the REST API: requests over the Unix socket, errors in words."""

from __future__ import annotations

import http.client
import json as json_module
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlencode

from node.errors import NodeError, SetupError

TIMEOUT = 60.0
"""Seconds for an answer: a large import compiles for some."""


class Refused(NodeError):
    """The agent does not take what it was given; the text has every reason."""

    exit_status: ClassVar[int] = 2


class NotThere(NodeError):
    """There is no such policy, endpoint or identity."""

    exit_status: ClassVar[int] = 1


class AgentFailed(NodeError):
    """The agent cannot do it now."""

    exit_status: ClassVar[int] = 3


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


class AgentClient:
    """Speaks to the agent whose API is at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(
        self,
        method: str,
        *path: str | int,
        params: dict[str, Any] | None = None,
        json: Any = None,
        text: str | None = None,
        timeout: float = 0,
    ) -> Any:
        """The JSON answer (or the text, if it is none) to a request.

        timeout: seconds that the agent itself may wait before it answers.
        Raises NodeError with what to do.
        """
        url = "/v1/" + "/".join(quote(str(part), safe="") for part in path)
        if params:
            url += "?" + urlencode(params, doseq=True)
        headers = {"Content-Type": "application/json" if text is None else "application/yaml"}
        body = json_module.dumps(json) if json is not None else text
        connection = _UnixConnection(self._path)
        connection.timeout = TIMEOUT + timeout
        try:
            connection.request(method, url, None if body is None else body.encode(), headers)
            response = connection.getresponse()
            content = response.read()
        except (FileNotFoundError, ConnectionRefusedError, PermissionError) as error:
            raise SetupError(self._unreachable(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise AgentFailed(
                f"{self._path}: the agent does not answer ({type(error).__name__}: {error})"
            ) from error
        finally:
            connection.close()
        return _answer(response.status, response.headers.get_content_type(), content.decode())

    def _unreachable(self, error: OSError) -> str:
        if isinstance(error, PermissionError):
            return (
                f"{self._path}: only its owner and its group may speak to the agent; "
                "become one of them (sudo), or have the agent's socket-group set"
            )
        return (
            f"no agent is at {self._path} ({error.strerror}); start one with 'proxylib agent', or "
            "name its socket: --socket PATH, or the variable PROXYLIB_SOCKET"
        )


def _answer(status: int, media_type: str, content: str) -> Any:
    if status >= HTTPStatus.BAD_REQUEST:
        if status == HTTPStatus.NOT_FOUND:
            raise NotThere(_detail(status, content))
        failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise (AgentFailed if failed else Refused)(_detail(status, content))
    return json_module.loads(content) if media_type == "application/json" else content


def _detail(status: int, content: str) -> str:
    try:
        return str(json_module.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the agent answers {status}: {content[:200]}"
