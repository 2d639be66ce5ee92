"""The command line's end of the REST API: requests over the Unix socket, errors in words."""

from __future__ import annotations

import contextlib
import http.client
import json as json_module
import socket
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlencode

import h11

from node.errors import NodeError, SetupError
from node.stopping import MAX_WAIT

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


class Gone(AgentFailed):
    """The agent ended, or was ended, in the middle of an answer."""


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
        url = _url(path, params)
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

    def stream(
        self, *path: str | int, params: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The JSON lines of a stream, each as soon as it is there, until the agent ends it.

        Raises NodeError as `call` does, Gone if the stream breaks off.
        """
        connection = _UnixConnection(self._path)
        connection.timeout = TIMEOUT
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise SetupError(self._unreachable(error)) from error
        with contextlib.closing(connection):
            try:
                for line in _body_lines(connection.sock, _url(path, params)):
                    yield json_module.loads(line)
            except (OSError, h11.RemoteProtocolError) as error:
                raise Gone(f"{self._path}: the agent has gone ({error})") from error

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


def _url(path: Sequence[str | int], params: Mapping[str, Any] | None) -> str:
    url = "/v1/" + "/".join(quote(str(part), safe="") for part in path)
    return url + ("?" + urlencode(params, doseq=True) if params else "")


def _body_lines(sock: socket.socket, url: str) -> Iterator[bytes]:
    """The lines of the body of an answer that may take for ever."""
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=url, headers=[("Host", "agent")])
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            # A signal that comes just before a wait does not end it (stopping.MAX_WAIT).
            sock.settimeout(MAX_WAIT)
            with contextlib.suppress(TimeoutError):
                http.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if status == HTTPStatus.OK:
                *lines, body = body.split(b"\n")
                yield from map(bytes, lines)
        elif isinstance(event, h11.EndOfMessage):
            if status != HTTPStatus.OK:
                _answer(status, "", body.decode())
            return


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
