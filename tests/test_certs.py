"""`toolkit certs`: what it makes, what it keeps, and what it refuses."""

from __future__ import annotations

import builtins
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from tests.certificates import make
from toolkit import cli
from toolkit.errors import ToolkitError
from toolkit.handshake import check_pair
from toolkit.project.certs import Wanted, make_certificates

NOW = datetime.now(UTC)
LEAF = Wanted(name="leaf", graph="my-graph", hosts=("localhost", "127.0.0.1", "::1"))
GRAPH = """\
name: my-graph
entry: front_end
services:
  leaf: {class: "m:C"}
  front_end: {class: "m:C"}
"""


def make_one(folder: Path, wanted: Wanted = LEAF, *, after: float = 0, **options: Any) -> list[str]:
    return make_certificates(folder, [wanted], days=30, now=NOW + timedelta(days=after), **options)


def read(folder: Path, name: str = "leaf") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def test_a_certificate_says_who_it_is_and_not_for_long(tmp_path: Path) -> None:
    make_one(tmp_path / "certs")
    leaf, ca = read(tmp_path / "certs"), read(tmp_path / "certs", "ca")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://my-graph/leaf"]
    assert names.get_values_for_type(x509.DNSName) == ["leaf.my-graph", "localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    for certificate, days in ((leaf, 30), (ca, 365)):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert certificate.not_valid_after_utc - NOW < timedelta(days=days)
    leaf.verify_directly_issued_by(ca)


def test_keys_are_for_their_owner_alone_and_not_for_git(tmp_path: Path) -> None:
    make_one(tmp_path / "certs")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "certs").iterdir()}
    assert {name: mode for name, mode in modes.items() if not name.endswith(".crt") and name != ".gitignore"} == {
        "ca.key": 0o600,
        "leaf.key": 0o600,
        "token": 0o600,
    }
    assert (tmp_path / "certs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "certs" / ".gitignore").read_text() == "*\n"


def test_made_again_everything_is_kept(tmp_path: Path) -> None:
    make_one(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [line.split()[0] for line in make_one(tmp_path)] == ["kept", "kept", "kept"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("after", "said"), [(19, "kept"), (21, "made"), (40, "made")])
def test_what_is_about_to_expire_is_renewed_by_the_same_authority(tmp_path: Path, after: float, said: str) -> None:
    make_one(tmp_path)
    authority = (tmp_path / "ca.crt").read_bytes()
    assert [line.split()[0] for line in make_one(tmp_path, after=after)] == ["kept", said, "kept"]
    assert (tmp_path / "ca.crt").read_bytes() == authority


def test_other_names_make_another_certificate(tmp_path: Path) -> None:
    make_one(tmp_path)
    assert make_one(tmp_path, Wanted(name="leaf", graph="other"))[1].startswith("made ")


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    make_one(tmp_path)
    make_one(tmp_path, after=350)
    assert read(tmp_path).not_valid_after_utc <= read(tmp_path, "ca").not_valid_after_utc


def test_an_authority_is_replaced_only_when_told(tmp_path: Path) -> None:
    make_one(tmp_path)
    before = (tmp_path / "ca.crt").read_bytes()
    with pytest.raises(ToolkitError, match=r"ca\.crt: expired on .*say --new-ca"):
        make_one(tmp_path, after=366)
    assert (tmp_path / "ca.crt").read_bytes() == before
    assert [line.split()[0] for line in make_one(tmp_path, after=366, new_ca=True)] == ["made", "made", "kept"]


@pytest.mark.parametrize("broken", ["ca.key", "ca.crt"])
def test_half_an_authority_is_not_replaced_either(tmp_path: Path, broken: str) -> None:
    make_one(tmp_path)
    for damage in (Path.unlink, lambda path: path.write_text("no PEM")):
        damage(tmp_path / broken)
        with pytest.raises(ToolkitError, match="move both away, or name another folder"):
            make_one(tmp_path)


def test_a_deployment_cannot_take_the_authoritys_files(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="the name of the authority's own files"):
        make_one(tmp_path, Wanted(name="ca", graph="g"))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match="name another folder with --out"):
        make_one(tmp_path / "file" / "certs")


def test_the_verb_makes_one_for_each_deployment_and_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    done = CliRunner().invoke(
        cli.app, ["certs", str(tmp_path / "graph.yaml"), "--client", "alice", "--host", "my.host"]
    )
    assert done.exit_code == 0, done.output
    certs = tmp_path / "certs"
    assert sorted(path.stem for path in certs.glob("*.crt")) == ["alice", "ca", "front_end", "leaf"]
    assert 'cert: "certs/{deployment}.crt"' in done.output
    assert "allow: [alice]" in done.output
    ca = str(certs / "ca.crt")
    for name in ("front_end.my-graph", "my.host", "localhost"):
        check_pair(str(certs / "front_end.crt"), str(certs / "front_end.key"), ca=ca, name=name)
    check_pair(str(certs / "alice.crt"), str(certs / "alice.key"), ca=ca, caller=True)
    with pytest.raises(ValueError, match="not for the name localhost"):
        check_pair(str(certs / "leaf.crt"), str(certs / "leaf.key"), ca=ca, name="localhost")


def test_without_the_library_the_verb_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "toolkit.project.certs":
            raise ImportError("No module named 'cryptography'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    (tmp_path / "graph.yaml").write_text(GRAPH)
    with pytest.raises(ToolkitError, match=r"pip install 'grpc-model-toolkit\[certs\]'"):
        cli.certs(tmp_path / "graph.yaml")


def test_what_tests_use_is_what_users_get(tmp_path: Path) -> None:
    folder = make(tmp_path / "certs")
    check_pair(str(folder / "leaf.crt"), str(folder / "leaf.key"), ca=str(folder / "ca.crt"), name="leaf.test")
