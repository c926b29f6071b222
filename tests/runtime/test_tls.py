"""Certificates that do not fit are named at the start."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import REGISTRY

from regionsearch.errors import Kind, RegionSearchError
from services.runtime import tls
from services.runtime.tls import check_certificate

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def make(folder: Path, name: str, begin: datetime.datetime, end: datetime.datetime) -> tuple[Path, Path]:
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def refusal(certificate: Path, key: Path, authorities: Path | None = None) -> str:
    with pytest.raises(RegionSearchError) as caught:
        check_certificate(certificate, key, authorities)
    assert caught.value.kind is Kind.FAILED_PRECONDITION
    return caught.value.message


def test_the_expiry_of_a_valid_certificate_is_a_metric(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "good", NOW - DAY, NOW + 90 * DAY)
    check_certificate(certificate, key, certificate)
    name = "regionsearch_tls_certificate_expiry_timestamp_seconds"
    assert REGISTRY.get_sample_value(name, {"role": "server"}) == pytest.approx(
        (NOW + 90 * DAY).timestamp(), abs=2
    )


def test_certificate_files_that_do_not_match_are_named(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "good", NOW - DAY, NOW + 90 * DAY)
    _, other = make(tmp_path, "other", NOW - DAY, NOW + 90 * DAY)
    expired, its_key = make(tmp_path, "expired", NOW - 3 * DAY, NOW - DAY)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    missing = tmp_path / "missing.pem"
    assert f"{other} is not the key of the certificate {certificate}" in refusal(certificate, other)
    assert f"{expired} has expired, at {NOW - DAY:%Y-%m-%d}" in refusal(expired, its_key)
    for file in (nonsense, missing):
        assert f"{file} cannot be read as a certificate" in refusal(file, key)
        assert f"{file} cannot be read" in refusal(certificate, file)
        assert f"{file} cannot be read as certificates of authorities" in refusal(certificate, key, file)


@pytest.mark.parametrize(
    ("begin", "end", "warning"),
    [(NOW + DAY, NOW + 90 * DAY, "not valid yet"), (NOW - DAY, NOW + 3 * DAY, "expires soon")],
    ids=["early", "late"],
)
def test_a_certificate_that_expires_soon_or_is_not_valid_yet_is_a_warning(
    tmp_path: Path,
    begin: datetime.datetime,
    end: datetime.datetime,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    class Log:
        def warning(self, event: str, **_: object) -> None:
            said.append(event)

    monkeypatch.setattr(tls, "_log", Log())
    check_certificate(*make(tmp_path, "odd", begin, end))
    assert len(said) == 1 and warning in said[0]


def test_a_process_with_the_key_of_another_certificate_ends_with_a_message(tmp_path: Path) -> None:
    certificate, _ = make(tmp_path, "good", NOW - DAY, NOW + 90 * DAY)
    _, other = make(tmp_path, "other", NOW - DAY, NOW + 90 * DAY)
    command = [sys.executable, "-m", "services.searcher", "--port", "0"]
    command += ["--embedded.folder", str(tmp_path / "records")]
    command += ["--tls.certificate", str(certificate), "--tls.key", str(other)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "is not the key of the certificate" in done.stderr
    assert "Traceback" not in done.stderr
