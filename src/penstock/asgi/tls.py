"""TLS for our listeners.

In: a certificate chain and its key as files; out: a context that speaks TLS 1.2 and later, or a ``Problem``.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from penstock.wire.errors import Problem


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a listener.  Raises ``Problem`` ``invalid_setting`` for files that are no certificate with its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # An encrypted key would make OpenSSL ask at the terminal; with a password to try it is an error.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        message = f"{certificate} and {key} are no certificate with its unencrypted key: {error}."
        raise Problem("invalid_setting", message, param="--tls-cert") from None
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    """For asking our own listener at its address, whatever name its certificate is for: trusts that one alone."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context
