"""The shape of HTTP rules: what a request line and its headers must be.

What each part means is proxylib.http's; here it is only found where it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from proxylib import regex
from proxylib.errors import RuleError
from proxylib.http_headers import header_condition, header_match
from xds.model_peers import KubernetesName
from xds.shape import Many, Optional, Shape

SECRET_NAMESPACE = "default"
"""Where a secret is looked for that names no namespace."""


def _whole(pattern: str) -> str:
    try:
        regex.check("", pattern)
    except RuleError as error:
        raise ValueError(f"{pattern!r}: {error.reason}") from error
    return pattern


def _header(line: str) -> str:
    try:
        header_condition(line)
    except RuleError as error:
        raise ValueError(f"{line!r}: {error.reason}") from error
    return line


Whole = Annotated[str, AfterValidator(_whole)]


class HttpSecret(Shape):
    """Where the value of a header is."""

    name: KubernetesName
    namespace: KubernetesName = SECRET_NAMESPACE


class HttpHeaderMatch(Shape):
    """One headerMatches item."""

    name: str
    value: Optional[str] = None
    secret: Optional[HttpSecret] = None
    mismatch: Optional[Literal["", "LOG", "ADD", "DELETE", "REPLACE"]] = None

    @model_validator(mode="after")
    def _can_be_enforced(self) -> Self:
        try:
            header_match(self.pairs())
        except RuleError as error:
            said = f"{error.value!r}: " if error.value else ""
            raise PydanticCustomError("header_match", f"{said}{error.reason}") from error
        return self

    def pairs(self) -> dict[str, str]:
        """As proxylib.http has it."""
        secret = self.secret and f"{self.secret.namespace}/{self.secret.name}"
        pairs = {
            "name": self.name,
            "value": self.value,
            "secret": secret,
            "mismatch": self.mismatch,
        }
        return {key: value for key, value in pairs.items() if value}


class HttpRule(Shape):
    """One item of http; {} matches every request."""

    method: Optional[Whole] = None
    path: Optional[Whole] = None
    host: Optional[Whole] = None
    headers: Optional[Many[Annotated[str, AfterValidator(_header)]]] = None
    headerMatches: Optional[Many[HttpHeaderMatch]] = None

    def pairs(self) -> Iterator[tuple[str, str]]:
        """As a rule class takes them: lists are lines."""
        for key in ("method", "path", "host"):
            if value := getattr(self, key):
                yield key, value
        if self.headers:
            yield "headers", "\n".join(self.headers)
        if self.headerMatches:
            items: list[dict[str, Any]] = [item.pairs() for item in self.headerMatches]
            yield "headerMatches", "\n".join(json.dumps(item, sort_keys=True) for item in items)
