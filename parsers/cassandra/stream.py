"""One direction of a connection: finds the frames, in segments or not, and has them judged.

A verdict is asked for as soon as enough of a frame is there; what is left of it
then passes or drops unseen.
"""

from __future__ import annotations

from collections.abc import Callable

from parsers.cassandra import frames, segments
from parsers.cassandra.frames import HEADER, HEADER_SIZE, MAX_LENGTH, VERSIONS, Short
from parsers.cassandra.session import Session
from proxylib import DROP, ERROR, INJECT, MORE, PASS, EntryType, ErrorCode, ParserError, limits

Known = Callable[[bytes, int], int]
"""``known(data, start)``: where the frames end that pass as such have before (known.py)."""

Judge = Callable[[tuple[int, int, int, int, int], bytes, int, int], bool]
"""``judge(header, data, start, have)``: whether a frame passes; raises Short."""

_OLD_VERSIONS = (1, 2)
_OLD_HEADER_SIZE = 8
"""Headers were a byte shorter once: enough, where a connection begins, to say no."""


class Stream:
    """The bytes of one direction. reply: from the server."""

    def __init__(self, session: Session, reply: bool, known: Known, judge: Judge) -> None:
        self._session = session
        self._reply = reply
        self._known = known
        self._judge = judge
        self._begun = False
        self._parts = bytearray()
        """What has come of a frame that is cut over several segments, not yet judged."""
        self._wanted = HEADER_SIZE
        """How many of its bytes the verdict needs."""
        self._raw = 0
        """The segments that it came in, bytes: they are withheld."""
        self._left = 0
        """What is still to come of such a frame that has been judged."""
        self._passing = True

    def feed(self, data: bytes, ops: list[int]) -> int:
        """Append the ops for `data`; returns how much of it waits for more."""
        position = 0
        if not self._session.segmented:
            position = self._known(data, 0)
            if position:
                ops += (PASS, position)
            if position == len(data):
                ops += (MORE, HEADER_SIZE)
                return 0
            position = self._frames(data, position, ops)
        if self._session.segmented and position >= 0:
            position = self._segments(data, position, ops)
        return len(data) - position if position >= 0 else 0

    def _frames(self, data: bytes, position: int, ops: list[int]) -> int:
        """Frames as they are, from `position` on. Returns the position of what is not
        judged, or -1 if the ops answer for more than `data`."""
        session = self._session
        known, judge = self._known, self._judge
        direction = 0x80 if self._reply else 0
        size = len(data)
        need = 0
        while not session.segmented:
            have = size - position
            if have < HEADER_SIZE:
                old = have and not self._begun and data[position] in _OLD_VERSIONS
                need = (_OLD_HEADER_SIZE if old else HEADER_SIZE) - have
                if need > 0:
                    break
            if data[position] ^ direction not in VERSIONS:
                self._wrong_version(data, position, ops)
                return -1
            self._begun = True
            if not self._reply and session.starting and session.starting.version >= 5:
                raise ParserError("a request before version 5's STARTUP is answered")
            head = HEADER.unpack_from(data, position)
            length = head[4]
            if not 0 <= length <= MAX_LENGTH:
                self._wrong_length(length, ops)
                return -1
            start = position + HEADER_SIZE
            end = start + length
            try:
                passes = judge(head, data, start, min(end, size) - start)
            except Short as short:
                need = start + short.need - size
                break
            ops += (PASS if passes else DROP, HEADER_SIZE + length)
            if end > size:
                return -1
            position = end
            if end < size and not session.segmented:
                position = known(data, end)
                if position > end:
                    ops += (PASS, position - end)
        else:
            return position
        ops += (MORE, need)
        return position

    def _segments(self, data: bytes, position: int, ops: list[int]) -> int:
        """Segments from `position` on. Returns as `_frames` does."""
        session = self._session
        compressed = bool(session.compression)
        header = segments.header_size(compressed)
        size = len(data)
        at = position + self._raw
        while True:
            if size - at < header:
                ops += (MORE, header - (size - at))
                return position
            length, plain, whole = segments.read_header(data[at : at + header])
            end = at + header + length + 4
            if self._left:
                if (
                    end > size
                    and self._reply
                    and session.deferred
                    and self._left == (plain or length)
                ):
                    # Our own replies follow it at once, so it is passed when it is here.
                    ops += (MORE, end - size)
                    return position
                self._rest(plain or length, whole, end - at, ops)
                if end > size:
                    return -1
                position = at = end
                continue
            if end > size:
                ops += (MORE, end - size)
                return position
            payload = segments.read_payload(data, at + header, length, plain)
            if not whole:
                if not self._part(payload, end - at, ops):
                    at = end
                    continue
            elif self._raw:
                raise ParserError("a segment with whole frames inside a frame that is cut")
            elif not self._whole(payload, end - at, ops):
                return -1
            position = at = end

    def _whole(self, payload: bytes, raw: int, ops: list[int]) -> bool:
        """A segment of whole frames; False if the connection is over."""
        passed, size = 0, len(payload)
        position = self._known(payload, 0)
        if position == size:
            ops += (PASS, raw)
            return True
        kept: list[bytes] = []
        dropped = False
        while position < size:
            head = self._head(payload, position)
            start = position + HEADER_SIZE
            end = start + head[4]
            if end > size:
                raise ParserError(f"a frame of {head[4]} bytes does not end in its segment")
            if not self._judge(head, payload, start, head[4]):
                kept.append(payload[passed:position])
                dropped = True
                passed = end
            position = self._known(payload, end)
        if not dropped:
            ops += (PASS, raw)
            return True
        rest = b"".join(kept) + payload[passed:]
        if rest:
            session = self._session
            rest = segments.pack(rest, bool(session.compression))
            ops += (INJECT, session.connection.inject(self._reply, rest))
        ops += (DROP, raw)
        return True

    def _part(self, payload: bytes, raw: int, ops: list[int]) -> bool:
        """A segment with a part of a frame; True once the frame is judged."""
        if not self._raw and len(payload) < HEADER_SIZE:
            raise ParserError("a frame that is cut inside its header")
        self._parts += payload
        self._raw += raw
        head = self._head(self._parts, 0)
        total = HEADER_SIZE + head[4]
        if len(self._parts) > total:
            raise ParserError(f"segments with more than the {total} bytes of their frame")
        if len(self._parts) < min(self._wanted, total):
            return False
        have = len(self._parts) - HEADER_SIZE
        try:
            passes = self._judge(head, bytes(self._parts), HEADER_SIZE, have)
        except Short as short:
            self._wanted = HEADER_SIZE + short.need
            return False
        ops += (PASS if passes else DROP, self._raw)
        self._passing = passes
        self._set_left(total - len(self._parts))
        self._parts = bytearray()
        self._raw = 0
        self._wanted = HEADER_SIZE
        return True

    def _rest(self, payload: int, whole: bool, raw: int, ops: list[int]) -> None:
        """A segment with more of a frame that has been judged, seen or not."""
        if whole or payload > self._left:
            raise ParserError(f"{self._left} bytes of a frame are to come, but not {payload}")
        ops += (PASS if self._passing else DROP, raw)
        self._set_left(self._left - payload)
        if self._reply and not self._left and self._session.deferred:
            ops += (INJECT, self._session.answer_deferred())

    def _set_left(self, left: int) -> None:
        self._left = left
        if self._reply:
            self._session.replying = left

    def _head(self, data: bytes | bytearray, position: int) -> tuple[int, int, int, int, int]:
        """The header of a frame in a segment."""
        if len(data) - position < HEADER_SIZE:
            raise ParserError("a segment that ends inside a frame's header")
        head: tuple[int, int, int, int, int] = HEADER.unpack_from(data, position)
        if head[0] != (0x85 if self._reply else 5):
            raise ParserError(f"a segment with a frame of version byte {head[0]:#04x}")
        if not 0 <= head[4] <= MAX_LENGTH:
            raise ParserError(f"a frame with a length of {head[4]}")
        return head

    def _wrong_length(self, length: int, ops: list[int]) -> None:
        text = f"a frame with a length of {length}"
        self._session.connection.log(EntryType.Denied, {"error": text})
        ops += (ERROR, ErrorCode.INVALID_FRAME_LENGTH)

    def _wrong_version(self, data: bytes, position: int, ops: list[int]) -> None:
        """Answer as Cassandra does, so that drivers try a lower version; hear no more."""
        version = data[position]
        if self._reply or version >= 0x80:
            raise ParserError(f"a frame with version byte {version:#04x}")
        known = ", ".join(f"{v}/v{v}" for v in VERSIONS)
        text = (
            f"Invalid or unsupported protocol version ({version}); supported versions are ({known})"
        )
        stream = data[position + 2]
        answer = VERSIONS[0]
        if version > VERSIONS[0]:
            stream = int.from_bytes(data[position + 2 : position + 4], signed=True)
            answer = VERSIONS[-1]
        session = self._session
        session.connection.log(EntryType.Denied, {"error": text})
        session.answer(frames.error(answer, stream, frames.PROTOCOL_ERROR, text))
        ops += (DROP, limits.MAX_OP_BYTES)
