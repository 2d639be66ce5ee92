"""Multiplexed streams: replies come in any order, and an id says whose they are."""

import struct

from proxylib import (
    EntryType,
    FramedParser,
    L7Rule,
    Message,
    ParserError,
    Prefix,
    length_prefix,
    parser,
)

HEADER = struct.Struct(">HHB")  # length of what follows it, stream, status (0 in requests)
MAX_STREAMS = 256
DENIED = 0xFF


@parser("recipe.streams")
class Streams(FramedParser):
    """Every frame has the id of its stream; an id is free again after its reply."""

    framing = length_prefix(2, limit=1 << 15)

    class Rule(L7Rule):
        topic = Prefix()

    def __init__(self, connection):
        super().__init__(connection)
        self.open = {}

    def request(self, frame):
        _, stream, _ = self.header(frame)
        if stream in self.open or len(self.open) >= MAX_STREAMS:
            raise ParserError(f"stream {stream} is open, or one too many")
        self.open[stream] = message = Message(topic=frame[HEADER.size :], stream=stream)
        return message

    def denied(self, request):
        # Its id says whose it is: it may overtake the replies to earlier requests.
        del self.open[request["stream"]]
        return HEADER.pack(HEADER.size - 2, request["stream"], DENIED)

    def response(self, frame):
        _, stream, status = self.header(frame)
        request = self.open.pop(stream, None)
        if request is None:
            raise ParserError(f"a reply on stream {stream}, which is not open")
        self.connection.log(EntryType.Response, {**request, "status": status})

    @staticmethod
    def header(frame):
        if len(frame) < HEADER.size:
            raise ParserError(f"a frame of {len(frame)} bytes")
        return HEADER.unpack_from(frame)
