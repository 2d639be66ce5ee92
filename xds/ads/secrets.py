"""Certificates and keys, and the TLS contexts that name them.

Listeners and clusters name secrets; what is in them comes by SDS, so that a renewed
certificate is one resource and no new listener.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.core.v3 import DataSource, TransportSocket
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    Secret,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.google.protobuf import Any

from proxylib.errors import ConfigError
from xds.ads.filters import ads_source

MAX_FILE = 1 << 20
"""Largest certificate, key or bundle, bytes; a system's whole bundle is a quarter of that."""

HTTP_ALPN = ("h2", "http/1.1")


@dataclass(frozen=True, slots=True)
class TlsSecret:
    """One secret: PEM texts. It either identifies, with a certificate and its key, or
    tells whom to trust, with trusted_ca."""

    name: str
    certificate: bytes = b""
    private_key: bytes = field(default=b"", repr=False)
    trusted_ca: bytes = b""


def read_secret(
    name: str,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
    trusted_ca: Path | None = None,
) -> TlsSecret:
    """A TlsSecret from PEM files: a certificate with its key, or trusted_ca.

    Raises ConfigError for other combinations, and, with its path, for a file that
    cannot be read.
    """
    if (certificate is None) != (private_key is None):
        raise ConfigError(f"secret {name}: a certificate and its private key come together")
    if (certificate is None) == (trusted_ca is None):
        raise ConfigError(f"secret {name}: either a certificate or trusted_ca")
    return TlsSecret(name, _read(certificate), _read(private_key), _read(trusted_ca))


def secret_message(secret: TlsSecret) -> Secret:
    """What SDS sends."""
    if secret.certificate:
        identity = TlsCertificate(
            certificate_chain=DataSource(inline_bytes=secret.certificate),
            private_key=DataSource(inline_bytes=secret.private_key),
        )
        return Secret(name=secret.name, tls_certificate=identity)
    checks = CertificateValidationContext(trusted_ca=DataSource(inline_bytes=secret.trusted_ca))
    return Secret(name=secret.name, validation_context=checks)


def terminating(secret: str, *, http: bool) -> TransportSocket:
    """A listener's end of TLS: it shows the certificate of `secret`."""
    common = CommonTlsContext(
        tls_certificate_sds_secret_configs=[_by_sds(secret)],
        alpn_protocols=list(HTTP_ALPN) if http else [],
    )
    return _tls(DownstreamTlsContext(common_tls_context=common))


def originating(secret: str, *, http: bool) -> TransportSocket:
    """A cluster's end of TLS: it trusts what `secret` says, for the name it asks for."""
    common = CommonTlsContext(validation_context_sds_secret_config=_by_sds(secret))
    # For HTTP the name is the request's; clusters.py has that.
    return _tls(UpstreamTlsContext(common_tls_context=common, auto_sni_san_validation=not http))


def _by_sds(name: str) -> SdsSecretConfig:
    return SdsSecretConfig(name=name, sds_config=ads_source())


def _tls(context: Message) -> TransportSocket:
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _read(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: larger than {MAX_FILE} bytes")
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{path}: not PEM text")
    return data
