"""`toolkit certs`: a certificate authority for development, and what each deployment of a graph shows to prove who it is.

The identities are those that `launcher.trust` asks for: the URI `spiffe://graph/deployment` and the name `deployment.graph`.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from toolkit.errors import ToolkitError

CA_DAYS: Final = 365
SKEW: Final = timedelta(minutes=5)
"""Clocks differ."""
RENEW_AT: Final = 1 / 3
"""Of its life left, and a certificate is made anew."""
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
AUTHORITY: Final = "ca"
Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A certificate to be made."""

    name: str
    """Of a deployment, or of a client."""
    graph: str
    hosts: tuple[str, ...] = ()
    """IP addresses and DNS names that outsiders call it by."""
    serves: bool = True

    @property
    def names(self) -> list[x509.GeneralName]:
        return [
            x509.UniformResourceIdentifier(f"spiffe://{self.graph}/{self.name}"),
            x509.DNSName(f"{self.name}.{self.graph}"),
            *map(_host, self.hosts),
        ]


def make_certificates(
    folder: Path, wanted: Sequence[Wanted], *, days: int, new_ca: bool = False, now: datetime | None = None
) -> list[str]:
    """Make in `folder` what is not there or is about to expire. Returns a line for each thing: `made …`, `kept …`.

    An authority is never replaced unless `new_ca` says so. Raises ToolkitError where what is there cannot be used.
    """
    now = datetime.now(UTC) if now is None else now
    if any(each.name == AUTHORITY for each in wanted):
        raise ToolkitError(
            f"{AUTHORITY}: the name of the authority's own files; call the deployment or client otherwise"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n")  # keys do not belong into a repository
        authority, said = _authority(folder, new_ca=new_ca, now=now)
        said += [_leaf(folder, each, authority, timedelta(days=days), now) for each in wanted]
        return [*said, _token(folder)]
    except OSError as error:
        raise ToolkitError(f"{error.filename}: {error.strerror}; name another folder with --out") from None


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: Key


def _authority(folder: Path, *, new_ca: bool, now: datetime) -> tuple[_Authority, list[str]]:
    cert, key = folder / f"{AUTHORITY}.crt", folder / f"{AUTHORITY}.key"
    if new_ca or not (cert.exists() or key.exists()):
        made = _make_authority(now)
        _write(key, _private(made.key), 0o600)
        _write(cert, made.certificate.public_bytes(Encoding.PEM), 0o644)
        return made, [f"made {cert}, the authority, for {CA_DAYS} days; its key is {key}: keep it to yourself"]
    found = _read(cert, key)
    if found.certificate.not_valid_after_utc <= now:
        raise ToolkitError(
            f"{cert}: expired on {found.certificate.not_valid_after_utc:%Y-%m-%d}; say --new-ca to replace it, "
            "and start again all that trusts it"
        )
    return found, [f"kept {cert}, the authority"]


def _make_authority(now: datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"toolkit development CA {secrets.token_hex(4)}")])
    builder = (
        _builder(name, name, key, now, timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _Authority(builder.sign(key, SHA256()), key)


def _leaf(folder: Path, wanted: Wanted, authority: _Authority, life: timedelta, now: datetime) -> str:
    cert, key = folder / f"{wanted.name}.crt", folder / f"{wanted.name}.key"
    if cert.exists() and key.exists() and _is_good(_read(cert, key), wanted, authority, now):
        return f"kept {cert}"
    made, own = _make_leaf(wanted, authority, life, now)
    _write(key, _private(own), 0o600)
    _write(cert, made.public_bytes(Encoding.PEM), 0o644)
    return f"made {cert}, until {made.not_valid_after_utc:%Y-%m-%d}"


def _is_good(found: _Authority, wanted: Wanted, authority: _Authority, now: datetime) -> bool:
    """Ours, for these names, and with enough of its life left."""
    cert = found.certificate
    try:
        cert.verify_directly_issued_by(authority.certificate)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    left = cert.not_valid_after_utc - now
    return set(names) == set(wanted.names) and left > (cert.not_valid_after_utc - cert.not_valid_before_utc) * RENEW_AT


def _make_leaf(wanted: Wanted, authority: _Authority, life: timedelta, now: datetime) -> tuple[x509.Certificate, Key]:
    key = ec.generate_private_key(ec.SECP256R1())
    life = min(life, authority.certificate.not_valid_after_utc - now)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if wanted.serves else [])]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.name)])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(name, authority.certificate.subject, key, now, life)
        .add_extension(x509.SubjectAlternativeName(wanted.names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(issuer, critical=False)
    )
    return builder.sign(authority.key, SHA256()), key


def _builder(name: x509.Name, issuer: x509.Name, key: Key, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _private(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read(cert: Path, key: Path) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not an unencrypted PEM file"
        raise ToolkitError(f"{cert}, {key}: {why}; move both away, or name another folder with --out") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != certificate.public_key():
        raise ToolkitError(f"{key}: not the key of {cert}; move both away, or name another folder with --out")
    return _Authority(certificate, private)


def _token(folder: Path) -> str:
    path = folder / "token"
    if path.exists():
        return f"kept {path}"
    _write(path, f"{secrets.token_hex(32)}\n".encode(), 0o600)
    return f"made {path}, a token"


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never open to others for a moment."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    new.replace(path)


def advice(folder: str, entry: str, clients: Sequence[str]) -> str:
    """What a graph file says to use them; `folder` as it reads from there."""
    return f"""tls:
  ca: {folder}/{AUTHORITY}.crt
  cert: "{folder}/{{deployment}}.crt"
  key: "{folder}/{{deployment}}.key"
  mutual: true                           # a deployment is called by those that name it, and by nobody else
auth: {{token_file: {folder}/token}}
services:
  {entry}:
    tls: {{allow: [{", ".join(clients)}]}}  # outsiders who may call the entry"""
