"""Envoy L7 extensions in Python: the public API for parser authors.

Everything a parser needs is importable from here; docs/author-guide.md shows it
in use.  The parsers in ``parsers/`` import nothing else.
"""

from proxylib import limits
from proxylib.connection import Connection
from proxylib.errors import ParserError, ProxylibError, RegistrationError, RuleError
from proxylib.framed import FramedParser
from proxylib.framing import Framing, length_prefix, lines
from proxylib.http import (
    DENIED_BODY,
    HeaderEdits,
    Headers,
    HttpRule,
    log_fields,
    path_test,
    redact,
)
from proxylib.http_path import normalize_path
from proxylib.message import Message, Properties, Value
from proxylib.ops import (
    DROP,
    ERROR,
    INJECT,
    MORE,
    NOP,
    PASS,
    WAIT,
    EntryType,
    ErrorCode,
    FilterResult,
    Op,
)
from proxylib.parser import BatchParser, Parser, ParserFactory
from proxylib.registry import parser, register_parser_factory
from proxylib.rules import (
    Contains,
    Exact,
    Field,
    L7Rule,
    Matcher,
    Prefix,
    Regex,
    Suffix,
    affix_test,
)
from proxylib.sandbox import OnError

__all__ = [
    "DENIED_BODY",
    "DROP",
    "ERROR",
    "INJECT",
    "MORE",
    "NOP",
    "PASS",
    "WAIT",
    "BatchParser",
    "Connection",
    "Contains",
    "EntryType",
    "ErrorCode",
    "Exact",
    "Field",
    "FilterResult",
    "FramedParser",
    "Framing",
    "HeaderEdits",
    "Headers",
    "HttpRule",
    "L7Rule",
    "Matcher",
    "Message",
    "OnError",
    "Op",
    "Parser",
    "ParserError",
    "ParserFactory",
    "Prefix",
    "Properties",
    "ProxylibError",
    "Regex",
    "RegistrationError",
    "RuleError",
    "Suffix",
    "Value",
    "affix_test",
    "length_prefix",
    "limits",
    "lines",
    "log_fields",
    "normalize_path",
    "parser",
    "path_test",
    "redact",
    "register_parser_factory",
]
