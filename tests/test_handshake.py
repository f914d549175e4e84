"""Certificates tried in memory, and what a failed handshake is said to mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import make
from toolkit.handshake import check_authority, check_pair, explain


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("certs"))


def pair(folder: Path, name: str) -> tuple[str, str]:
    return str(folder / f"{name}.crt"), str(folder / f"{name}.key")


def test_a_good_pair_tells_its_names(certs: Path) -> None:
    ca = str(certs / "ca.crt")
    names = ("spiffe://test/leaf", "leaf.test", "localhost")
    assert check_pair(*pair(certs, "leaf")) == names
    assert check_pair(*pair(certs, "leaf"), ca=ca, name="leaf.test") == names
    assert check_pair(*pair(certs, "leaf"), ca=ca, caller=True) == names


def test_a_client_certificate_is_good_for_calling_only(certs: Path) -> None:
    ca = str(certs / "ca.crt")
    assert check_pair(*pair(certs, "client"), ca=ca, caller=True) == ("spiffe://test/client", "client.test")
    with pytest.raises(ValueError, match=r"client\.crt: "):
        check_pair(*pair(certs, "client"), ca=ca)


@pytest.mark.parametrize("caller", [False, True])
def test_what_is_wrong_with_a_pair_is_said(certs: Path, caller: bool) -> None:
    ca = str(certs / "ca.crt")
    cert, key = pair(certs, "leaf")
    for wrong, said in {
        (cert, pair(certs, "entry")[1]): f"{certs}/entry.key: not the key of {cert}",
        (str(certs / "gone"), key): f"{certs}/gone: no such file",
        (cert, str(certs / "gone")): f"{certs}/gone: no such file",
        (str(certs / "token"), key): "not a certificate and its unencrypted key in PEM form",
        pair(certs, "old"): f"{certs}/old.crt: expired; renew it",
        pair(certs / "foreign", "leaf"): f"{certs}/foreign/leaf.crt: not signed by {ca}",
    }.items():
        with pytest.raises(ValueError, match=said.replace(".", r"\.")):
            check_pair(*wrong, ca=ca, caller=caller)


def test_expiry_is_found_without_an_authority(certs: Path) -> None:
    with pytest.raises(ValueError, match="expired"):
        check_pair(*pair(certs, "old"))


def test_the_wrong_name_is_said(certs: Path) -> None:
    with pytest.raises(ValueError, match=r"not for the name api\.example\.com"):
        check_pair(*pair(certs, "leaf"), ca=str(certs / "ca.crt"), name="api.example.com")


def test_a_file_without_certificates_is_no_authority(certs: Path) -> None:
    for name, said in (("token", "holds no certificate in PEM form"), ("gone", "no such file")):
        with pytest.raises(ValueError, match=said):
            check_authority(str(certs / name))


@pytest.mark.parametrize(
    ("details", "meaning"),
    [
        ("OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired"),
        ("OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "not signed by"),
        ("Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.", "name"),
        ("SSL_ERROR_SSL: error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", "speaks no TLS"),
        ("ipv4:127.0.0.1:1: Socket closed", "It may speak TLS"),
    ],
)
def test_a_failed_connection_is_explained(details: str, meaning: str) -> None:
    said = explain(f"failed to connect to all addresses; last error: UNKNOWN: {details}")
    assert said is not None
    assert meaning in said


@pytest.mark.parametrize("details", ["", "Socket closed", "failed to connect to all addresses: Connection refused"])
def test_what_is_no_matter_of_tls_is_left_alone(details: str) -> None:
    assert explain(details) is None
