"""Whose fault an error is, in its type."""

from __future__ import annotations


class ProxylibError(Exception):
    """Base of every error that this package raises on purpose."""


class ParserError(ProxylibError):
    """A stream that cannot be parsed, an answer that cannot be carried out, or a limit passed.

    A parser raises it for bytes that are not of its protocol: the connection closes,
    and the log has the text.
    """


class RegistrationError(ProxylibError):
    """A parser factory cannot be registered, or a parser module cannot be loaded."""


class PolicyError(ProxylibError):
    """A policy resource cannot be put in force; the text is the NACK's reason."""


class RuleError(PolicyError):
    """An L7 rule has a key or a value that its parser's rule class refuses.

    `key` and `value` are what the policy said; `reason` what is wrong with it.
    """

    def __init__(self, key: str, value: str, reason: str) -> None:
        super().__init__(f"{key}: {value!r}: {reason}" if value else f"{key}: {reason}")
        self.key = key
        self.value = value
        self.reason = reason


class ConfigError(ProxylibError):
    """A module parameter or filter configuration is wrong."""
