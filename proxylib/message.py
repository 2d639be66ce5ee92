"""A protocol message as named properties.

The same properties feed policy matching, policy trace, the access log and
metrics: a parser's author names them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = str | bytes | int | Sequence[bytes]
"""A property: text, bytes off the wire, a number, or several byte strings (keys, topics).
The log of HTTP also has pairs of byte strings (headers)."""

Properties = Mapping[str, Value]
"""What rules match and the log shows: a `Message`, or any mapping of names to values."""


class Message(dict[str, Value]):
    """Named properties of one request or reply: ``Message(cmd=b"READ", file=b"x")``.

    Values off the wire stay `bytes`: what is not UTF-8 is escaped in the log and
    matched as it is by the policy.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Message({', '.join(f'{k}={v!r}' for k, v in self.items())})"


def check_value(name: str, value: object) -> None:
    """Raise TypeError unless `value` can be a property; the log refuses others too."""
    several = isinstance(value, (list, tuple)) and all(map(_is_item, value))
    if not several and not isinstance(value, (str, bytes, int)):
        raise TypeError(f"property {name!r} is {value!r}: not str, bytes, int, or several bytes")


def _is_item(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(isinstance(part, (bytes, str)) for part in value)
    return isinstance(value, (bytes, str))
