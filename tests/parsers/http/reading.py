"""What another reader of HTTP/1.1, h11, sees in what has gone to the server."""

from __future__ import annotations

import h11


def requests_in(data: bytes, *, strict: bool = True) -> list[tuple[bytes, bytes, bytes]]:
    """Method, target and content of each request in `data`; the last may be cut short.

    strict: raise h11.RemoteProtocolError for what h11 cannot read, instead of stopping
    there, as a server would.
    """
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    found: list[tuple[bytes, bytes, bytes]] = []
    try:
        while True:
            event = server.next_event()
            if isinstance(event, h11.Request):
                found.append((event.method, event.target, b""))
            elif isinstance(event, h11.Data):
                method, target, content = found[-1]
                found[-1] = (method, target, content + event.data)
            elif isinstance(event, h11.EndOfMessage):
                if server.our_state is h11.SEND_BODY:
                    return found
                server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                server.send(h11.EndOfMessage())
                if server.our_state is not h11.DONE:
                    return found
                server.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        if strict:
            raise
        return found
