"""What heads of requests and replies share: which bytes they may have, and their fields.

Nothing here is lenient.  A line ends in CRLF and in nothing else; a byte that is no
character, a name that is not a token, a space before the colon: whatever two readers
might read in two ways is refused, and the reason says what it was.

Everything is one pass of `bytes` methods over the head, so that the time is linear and
small, whatever a peer sends.

Source: RFC 9112 (sections 2.2 and 5), RFC 9110 (section 5).
"""

from __future__ import annotations

from proxylib import ProxylibError

MAX_HEAD = 60 << 10
"""Longest head, bytes, and longest trailer section: Envoy's default."""

MAX_FIELDS = 100
"""Most header fields in a head or trailer section: Envoy's default."""

LENGTH_DIGITS = 18
"""Most digits of a Content-Length: an exabyte less one, within limits.MAX_OP_BYTES."""

HEAD_END = b"\r\n\r\n"

TEXT = bytes(c for c in range(256) if c == 9 or (c >= 32 and c != 127))
"""What may stand in a head besides CRLF: tab, visible ASCII and space, obs-text."""

TOKEN = b"!#$%&'*+-.^_`|~0123456789" + bytes(range(65, 91)) + bytes(range(97, 123))

VISIBLE = bytes(range(33, 127))

FRAMING = frozenset((b"content-length", b"transfer-encoding"))

LOOKALIKE = frozenset((b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade"))
"""Names that must not be imitated with underscores, for CGI and WSGI read them alike."""

NOT_IN_TRAILERS = LOOKALIKE | {b"te", b"trailer", b"expect", b"authorization", b"set-cookie"}

Fields = tuple[tuple[bytes, bytes], ...]
"""(lower-case name, value without surrounding blanks) in order."""

CHUNKED = -1
"""In place of a body's length."""


class BadMessage(ProxylibError):
    """This is not HTTP/1, or nothing that two readers certainly read alike."""


def find_end(data: bytes, at: int, what: str) -> int:
    """Index behind the head that begins at `at`; 0 if more bytes are needed.

    Raises BadMessage for a head that is too long, or cannot become one. What it says
    does not depend on how much of the head is there.
    """
    end = data.find(HEAD_END, at) + 4
    if 4 <= end <= at + MAX_HEAD:
        return end
    part = data[at : at + MAX_HEAD]
    check_text(part[:-1] if part.endswith(b"\r") else part, what)
    if len(data) - at > MAX_HEAD:
        raise BadMessage(f"{what} of more than {MAX_HEAD} bytes")
    return 0


def check_text(head: bytes, what: str) -> None:
    """Raise BadMessage unless lines end in CRLF and all else is text."""
    # What is left are line ends and what must not be there.
    if len(head.translate(None, TEXT)) != 2 * head.count(b"\r\n"):
        raise BadMessage(f"a control character, or a line end that is not CRLF, in {what}")


def split(head: bytes) -> tuple[bytes, bytes]:
    """The start line, and what is behind it: from its CRLF to the CRLF of the empty line."""
    end = head.find(b"\r\n")
    return head[:end], head[end:]


def lines_of(section: bytes) -> list[bytes]:
    """The header lines of a section as `split` has it."""
    return section[2:-4].split(b"\r\n") if len(section) > 4 else []


def unfold(section: bytes) -> bytes:
    """`section` with each line folding (obs-fold) made a space, as RFC 9112 5.2 asks for.

    Raises BadMessage if the first line is a continuation: of the start line.
    """
    unfolded: list[bytes] = []
    for line in lines_of(section):
        if line[:1] not in (b" ", b"\t"):
            unfolded.append(line)
        elif unfolded:
            unfolded[-1] = unfolded[-1].rstrip(b" \t") + b" " + line.strip(b" \t")
        else:
            raise BadMessage("a start line that is continued")
    return join(unfolded)


def join(lines: list[bytes]) -> bytes:
    """The section that has these lines: what `lines_of` takes apart."""
    return b"\r\n".join([b"", *lines, b"", b""])


def is_folded(section: bytes) -> bool:
    return b"\r\n " in section or b"\r\n\t" in section


def read_fields(lines: list[bytes]) -> Fields:
    """The fields in `lines`, whose text was checked.

    Raises BadMessage for a line that is no field, and for too many.
    """
    if len(lines) > MAX_FIELDS:
        raise BadMessage(f"more than {MAX_FIELDS} header fields")
    try:
        fields = tuple(
            (name.lower(), value.strip(b" \t"))
            for name, value in [line.split(b":", 1) for line in lines]
        )
    except ValueError:
        raise BadMessage("a header line without a colon") from None
    names = [name for name, _ in fields]
    together = b"".join(names)
    if b"" in names or together.translate(None, TOKEN):
        raise BadMessage("a header name that is not a token")
    if b"_" in together:
        for name in names:
            if b"_" in name and name.replace(b"_", b"-") in LOOKALIKE:
                raise BadMessage(f"a header {name.decode()!r}")
    return fields


def values_of(fields: Fields, wanted: bytes) -> list[bytes]:
    """Every value of the header named `wanted`."""
    return [value for name, value in fields if name == wanted]


def options(values: list[bytes]) -> list[bytes]:
    """The members, in lower case, of a header that is a list, over all its lines."""
    members = b",".join(values).lower().split(b",")
    return [option for option in map(bytes.strip, members) if option]


def body_length(codings: list[bytes], lengths: list[bytes], *, old: bool) -> int | None:
    """The announced length of a body, CHUNKED, or None for neither.

    codings, lengths: the values of Transfer-Encoding and of Content-Length.
    old: the message is of HTTP/1.0, which does not know Transfer-Encoding.
    Raises BadMessage for what is ambiguous. "chunked" alone is understood: what a
    server makes of other codings in front of it differs.
    """
    if codings:
        if lengths:
            raise BadMessage("both Transfer-Encoding and Content-Length")
        if old:
            raise BadMessage("Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadMessage("a Transfer-Encoding that is not chunked")
        return CHUNKED
    if not lengths:
        return None
    if len(lengths) > 1:
        raise BadMessage("more than one Content-Length")
    if not lengths[0].isdigit() or len(lengths[0]) > LENGTH_DIGITS:
        raise BadMessage("a Content-Length that is not a number")
    return int(lengths[0])


def check_trailers(section: bytes) -> None:
    """Raise BadMessage unless `section`, with the CRLF that ends it, may be a trailer."""
    check_text(section, "the trailers")
    if is_folded(section) or section[:1] in (b" ", b"\t"):
        raise BadMessage("a folded trailer")
    for name, _ in read_fields(section[:-4].split(b"\r\n")):
        if name in NOT_IN_TRAILERS:
            raise BadMessage(f"a trailer {name.decode()!r}")
