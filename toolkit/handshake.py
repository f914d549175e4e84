"""TLS, tried and explained: does a certificate do what it is for, and what does a failed handshake of gRPC mean?"""

from __future__ import annotations

import ssl
from typing import Any, Final

RENEW: Final = "renew it; `toolkit certs` does so for development"


def check_pair(cert: str, key: str, *, ca: str = "", name: str = "", caller: bool = False) -> tuple[str, ...]:
    """Try these PEM files in a handshake in memory. Returns the URIs and DNS names that the certificate holds.

    With `ca` it must be signed by that authority, and with `name` be for that DNS name; with `caller` it is shown by the
    side that calls. Raises ValueError: one sentence that names the file.
    """
    serving = _context(ssl.PROTOCOL_TLS_SERVER)
    calling = _context(ssl.PROTOCOL_TLS_CLIENT)
    shows, verifies = (calling, serving) if caller else (serving, calling)
    for context in {shows, serving}:
        _load_pair(context, cert, key)
    verifies.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # without `ca` the certificate itself is the anchor
    load_authority(verifies, ca or cert)
    verifies.verify_mode = ssl.CERT_REQUIRED
    calling.check_hostname = bool(name) and not caller
    try:
        found: Any = _shake_hands(serving, calling, name)[0 if caller else 1].getpeercert()
    except ssl.SSLCertVerificationError as error:
        raise ValueError(_verdict(error, cert, ca, name)) from None
    except ssl.SSLError as error:
        raise ValueError(f"{cert}: no TLS with it: {error.reason}") from None
    return tuple(value for kind, value in found.get("subjectAltName", ()) if kind in ("URI", "DNS"))


def load_authority(context: ssl.SSLContext, path: str) -> None:
    """Let `context` trust the certificates in a PEM file. Raises ValueError."""
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path}: holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"{path}: {_why(error)}") from None


def check_authority(path: str) -> None:
    load_authority(_context(ssl.PROTOCOL_TLS_CLIENT), path)


def explain(details: str) -> str | None:
    """What a connection of gRPC that failed in the handshake means for a user; None for what is no matter of TLS."""
    if "to connect" not in details:
        return None
    for part, sentence in _MEANINGS.items():
        if part in details:
            return sentence
    return None


_MEANINGS: Final = {
    "certificate has expired": f"its certificate has expired; {RENEW}",
    "certificate is not yet valid": "its certificate is not valid yet; are the clocks right?",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the authority that is trusted here; name the right ca",
    "Hostname Verification": "its certificate is for another name than the one it was called by; name it with server_name",
    "WRONG_VERSION_NUMBER": "it speaks no TLS; call it without, or give it `tls:`",
    "Socket closed": (
        "it ended the connection at once. It may speak TLS (then name its ca), ask for a certificate (then name cert and "
        "key), or not accept the one it was shown (expired, or of another ca)"
    ),
}
"""A part of gRPC's own text → what to say instead."""
_TURNS: Final = 8
"""More than any handshake takes."""


def _context(kind: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # else OpenSSL asks at the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key}: not the key of {cert}") from None
        raise ValueError(f"{cert}, {key}: not a certificate and its unencrypted key in PEM form") from None
    except OSError as error:
        raise ValueError(f"{_culprit(cert, key)}: {_why(error)}") from None


def _culprit(cert: str, key: str) -> str:
    """OpenSSL does not say which of the two it could not open."""
    try:
        with open(cert, "rb"):
            return key
    except OSError:
        return cert


def _why(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _shake_hands(serving: ssl.SSLContext, calling: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(there, back, server_side=True)
    client = calling.wrap_bio(back, there, server_hostname=name or None)
    waiting = [client, server]
    for side in (client, server) * _TURNS:
        if side in waiting:
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    return server, client


def _verdict(error: ssl.SSLCertVerificationError, cert: str, ca: str, name: str) -> str:
    said = error.verify_message
    if "expired" in said:
        return f"{cert}: expired; {RENEW}"
    if "mismatch" in said:
        return f"{cert}: not for the name {name}; make one that is, or say its name: tls: {{server_name: …}}"
    if "issuer" in said or "self-signed" in said or "self signed" in said:
        return f"{cert}: not signed by {ca}"
    return f"{cert}: {said}"
