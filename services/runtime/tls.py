"""Checks of certificates at the start of a process, so that a wrong one is reported once and clearly."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import structlog
from prometheus_client import Gauge

from regionsearch.errors import Kind, RegionSearchError

_SOON = datetime.timedelta(days=14)

_EXPIRY = Gauge(
    "regionsearch_tls_certificate_expiry_timestamp_seconds",
    "Expiry of a certificate that this process presents, seconds since 1970.",
    ("role",),
)

_log = structlog.get_logger(__name__)


def check_certificate(
    certificate: Path, key: Path, authorities: Path | None = None, *, role: str = "server"
) -> None:
    """Checks the files of one side of TLS; warns of a certificate that expires soon.

    Args:
        certificate: This process's certificate, followed by intermediate ones, PEM.
        key: Its private key, PEM.
        authorities: Trusted authorities, PEM.
        role: ``server`` or ``client``: the label of the metric.

    Raises:
        RegionSearchError: FAILED_PRECONDITION that names the file: it cannot be read, the key does not belong
            to the certificate, or the certificate has expired.
    """
    from cryptography import x509  # a tenth of the start of a process, which few need

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise _wrong(certificate, f"cannot be read as a certificate ({error})") from None
    try:
        context.load_cert_chain(certificate, key, password="")  # without this, OpenSSL prompts for one
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _wrong(key, f"is not the key of the certificate {certificate}") from None
        raise _wrong(key, f"cannot be read as a private key without a passphrase ({error.reason})") from None
    except OSError as error:
        raise _wrong(key, f"cannot be read ({error.strerror})") from None
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:  # of which SSLError is one
            raise _wrong(authorities, f"cannot be read as certificates of authorities ({error})") from None

    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    _EXPIRY.labels(role).set(end.timestamp())
    facts = {"certificate": str(certificate), "not_before": str(begin), "not_after": str(end)}
    if end <= now:
        raise _wrong(certificate, f"has expired, at {end:%Y-%m-%d %H:%M} UTC")
    if begin > now:
        _log.warning("the certificate is not valid yet; is the clock right?", **facts)
    elif end - now < _SOON:
        _log.warning("the certificate expires soon", **facts)


def _wrong(file: Path, what: str) -> RegionSearchError:
    return RegionSearchError(Kind.FAILED_PRECONDITION, f"TLS: {file} {what}; put the right file in its place")
