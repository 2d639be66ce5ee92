"""TLS secrets that policies name: a folder, laid out as Kubernetes mounts secrets.

Secret ``NAMESPACE/NAME`` is the folder of that path, with ``tls.crt``, ``tls.key`` and
``ca.crt``, or with what a policy calls these.  (Header values of HTTP rules are in the same
folder; proxylib/http_secrets.py reads them.)  What was in order once stays in force when
its files no longer are: half a renewal must not end a service.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from proxylib.errors import ConfigError
from xds.ads.secrets import TlsSecret, read_secret
from xds.model_http import SECRET_NAMESPACE
from xds.policy import TLSContext

CERTIFICATE, PRIVATE_KEY, TRUSTED_CA = "tls.crt", "tls.key", "ca.crt"
"""What the items of a secret are called where a policy does not say (Kubernetes' names)."""

_ITEM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
"""Kubernetes' names of items, but those that begin with a dot."""

log = logging.getLogger(__name__)


class TlsSecrets:
    """The secrets in `folder`; None: there are none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._good: dict[str, TlsSecret] = {}
        self._bad: dict[str, str] = {}

    def identity(self, context: TLSContext) -> TlsSecret:
        """What a listener shows to clients: a certificate and its key.

        Raises ConfigError if it never was in order, and says what is wrong.
        """
        certificate = context.certificate or CERTIFICATE
        key = context.private_key or PRIVATE_KEY
        name = _name(context, certificate) + (f"+{key}" if context.private_key else "")
        return self._keep(
            name,
            lambda: read_secret(
                name,
                certificate=self._path(context, certificate),
                private_key=self._path(context, key),
            ),
        )

    def trust(self, context: TLSContext) -> TlsSecret:
        """Whom to trust as a server. Raises as `identity` does."""
        item = context.trusted_ca or TRUSTED_CA
        name = _name(context, item)
        return self._keep(name, lambda: read_secret(name, trusted_ca=self._path(context, item)))

    def _keep(self, name: str, read: Callable[[], TlsSecret]) -> TlsSecret:
        try:
            self._good[name] = read()
            self._bad.pop(name, None)
        except ConfigError as error:
            if self._bad.get(name) != str(error):
                kept = "; the last good one stays" if name in self._good else ""
                log.error("TLS secret %s: %s%s", name, error, kept)
            self._bad[name] = str(error)
            if name not in self._good:
                raise
        return self._good[name]

    def _path(self, context: TLSContext, item: str) -> Path:
        if self._folder is None:
            raise ConfigError("the agent has no secrets-dir")
        if not _ITEM.fullmatch(item):
            raise ConfigError(f"{item[:80]!r} is no name of a secret's item")
        return self._folder / (context.namespace or SECRET_NAMESPACE) / context.secret / item


def _name(context: TLSContext, item: str) -> str:
    """Without a slash: it is part of a redirect's name."""
    return f"{context.namespace or SECRET_NAMESPACE}:{context.secret}:{item}"
