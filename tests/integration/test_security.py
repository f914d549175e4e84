"""Encryption and authentication as users run them: real processes, real handshakes, `toolkit certs`, `up` and `call`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.echo.v1.echo_toolkit import EchoClient, Note
from tests.certificates import make
from tests.integration.up import CLASSES, Project, Running, environ, toolkit, up
from toolkit.connect import Tls, connect

pytestmark = pytest.mark.integration

MIB = 1 << 20
UPLOADS = 64
UPLOAD_BYTES = 16 * MIB
MAX_GROWTH = 64 * MIB

GRAPH = """\
name: test
entry: entry
tls:
  ca: certs/ca.crt
  cert: "certs/{deployment}.crt"
  key: "certs/{deployment}.key"
  mutual: true
auth: {token_file: certs/token}
services:
  leaf: {class: "classes:Leaf", port: LEAF_PORT}
  entry: {class: "classes:Caller", port: PORT, tls: {allow: [client]}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "classes.py").write_text(CLASSES)
    return Project(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def certs(made: Path, project: Project) -> Path:
    return Path(shutil.copytree(made, project.folder / "certs"))


@contextmanager
def replica(project: Project, *options: str) -> Iterator[tuple[int, str]]:
    """A replica of `Leaf` alone: its process id, and where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit.replica", "classes:Leaf", "--listen", "127.0.0.1:0", "--reflection", *options],
        cwd=project.folder,
        env=environ(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.pid, Running(process).wait_line(" serves ").split()[-1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def call(project: Project, *options: str) -> tuple[int, str]:
    """Exit code and what was said: the reply's text, or the error."""
    done = toolkit("call", "Say", '{"text": "hi"}', *options, folder=project.folder)
    return done.returncode, json.loads(done.stdout)["text"] if done.stdout else done.stderr.rstrip()


def test_a_graph_with_certificates_and_a_token(project: Project) -> None:
    """From a file without either to one that is called with both, with what `toolkit certs` makes and says."""
    path = project.folder / "graph.yaml"
    leaf_port = Project(project.folder).port
    text = GRAPH.replace("LEAF_PORT", str(leaf_port)).replace(" PORT", f" {project.port}")
    path.write_text(text)
    missing = toolkit("check", "graph.yaml", folder=project.folder)
    assert missing.returncode == 2
    assert "graph.yaml:8: auth.token_file: " in missing.stderr
    assert "certs/token: no such file" in missing.stderr
    told = toolkit("certs", "graph.yaml", "--client", "client", "--client", "stranger", folder=project.folder)
    assert told.returncode == 0, told.stderr
    assert toolkit("check", "graph.yaml", folder=project.folder).stdout.startswith("ok: test: deployments 2, edges 1")
    mine = ("--cert", "certs/client.crt", "--key", "certs/client.key")
    with up(path) as running:
        running.wait_ready()
        assert call(project, "--graph", "graph.yaml", *mine) == (0, "hi")
        for options, said in {
            ("--graph", "graph.yaml"): "ask for a certificate (then name cert and key)",
            ("--graph", "graph.yaml", "--cert", "certs/stranger.crt", "--key", "certs/stranger.key"): (
                "PERMISSION_DENIED: spiffe://test/stranger is not one of the callers of this deployment"
            ),
            ("--target", f"127.0.0.1:{project.port}"): "It may speak TLS (then name its ca)",
            (
                "--target",
                f"127.0.0.1:{project.port}",
                "--ca",
                "certs/ca.crt",
                *mine,
            ): "UNAUTHENTICATED: a token is needed",
            # the entry may call the leaf; whoever may call the entry may not
            ("--target", f"127.0.0.1:{leaf_port}", "--ca", "certs/ca.crt", *mine, "--token-file", "certs/token"): (
                "PERMISSION_DENIED: spiffe://test/client"
            ),
        }.items():
            code, answer = call(project, *options)
            assert (code, said in answer) == (1, True), (options, answer)
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_an_expired_certificate_stops_the_start_with_its_line(project: Project, certs: Path) -> None:
    (project.folder / "graph.yaml").write_text(
        "name: test\nentry: old\nservices:\n  old:\n    class: classes:Leaf\n"
        "    tls: {ca: certs/ca.crt, cert: certs/old.crt, key: certs/old.key}\n"
    )
    done = toolkit("up", "graph.yaml", folder=project.folder)
    said = (
        f"error: graph.yaml:6: services.old.tls.cert: {certs}/old.crt: expired; renew it; `toolkit certs` does so for "
    )
    assert (done.returncode, done.stderr.rstrip()) == (2, f"{said}development")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--listen", "0.0.0.0:0"),
            "0.0.0.0:0 can be reached from the network, and callers need neither TLS nor a token",
        ),
        (("--cert", "certs/old.crt", "--key", "certs/old.key"), "certs/old.crt: expired; renew it"),
        (("--cert", "certs/leaf.crt", "--key", "certs/entry.key"), "certs/entry.key: not the key of certs/leaf.crt"),
        (("--token-file", "certs/gone"), "certs/gone: no such file"),
        (
            ("--token-file", "certs/ca.crt"),
            "certs/ca.crt: other users can read this secret; run: chmod 600 certs/ca.crt",
        ),
    ],
)
def test_a_replica_with_wrong_files_says_so_and_does_not_start(
    project: Project, certs: Path, options: tuple[str, ...], said: str
) -> None:
    command = [sys.executable, "-m", "toolkit.replica", "classes:Leaf", *options]
    done = subprocess.run(command, cwd=project.folder, env=environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {said}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cert", "a"), "--cert and --key belong together"),
        (("--caller-ca", "a"), "--caller-ca needs --cert and --key"),
        (("--cert", "a", "--key", "b", "--allow", "c"), "--allow needs --caller-ca"),
    ],
)
def test_flags_that_need_others_say_so(project: Project, options: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "toolkit.replica", "classes:Leaf", *options]
    done = subprocess.run(command, cwd=project.folder, env=environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_open_to_the_network_where_it_is_said(project: Project) -> None:
    with replica(project, "--listen", "0.0.0.0:0", "--insecure") as (_, address):
        assert address.startswith("0.0.0.0:")


def test_a_replica_alone_with_tls(project: Project, certs: Path) -> None:
    with replica(project, "--cert", "certs/leaf.crt", "--key", "certs/leaf.key") as (_, address):
        assert call(project, "--target", address, "--ca", "certs/ca.crt") == (0, "hi")
        for options, said in {
            ("--ca", "certs/foreign/ca.crt"): "its certificate is not signed by the authority that is trusted here",
            ("--tls",): "its certificate is not signed by the authority that is trusted here",
            ("--ca", "certs/ca.crt", "--server-name", "entry.test"): "its certificate is for another name",
            (): "It may speak TLS (then name its ca)",
        }.items():
            code, answer = call(project, "--target", address, *options)
            assert (code, said in answer) == (1, True), (options, answer)


def test_a_replica_alone_that_asks_for_certificates(project: Project, certs: Path) -> None:
    asks = ("--cert", "certs/leaf.crt", "--key", "certs/leaf.key", "--caller-ca", "certs/ca.crt")
    with replica(project, *asks, "--allow", "spiffe://test/client") as (_, address):
        for name, said in {
            "client": "hi",
            "stranger": "PERMISSION_DENIED: spiffe://test/stranger",
            "foreign/client": "not accept the one it was shown (expired, or of another ca)",
        }.items():
            shown = ("--cert", f"certs/{name}.crt", "--key", f"certs/{name}.key")
            assert said in call(project, "--target", address, "--ca", "certs/ca.crt", *shown)[1]


def test_tls_to_a_port_that_speaks_none_says_so(project: Project, certs: Path) -> None:
    with replica(project) as (_, address):
        assert "it speaks no TLS" in call(project, "--target", address, "--ca", "certs/ca.crt")[1]


async def test_a_token_is_rotated_while_both_sides_run(project: Project, certs: Path) -> None:
    theirs, ours = certs / "theirs", certs / "ours"
    for file in (theirs, ours):
        file.touch(mode=0o600)
        file.write_text("old-token-0123456789\n")
    with replica(project, "--token-file", "certs/theirs") as (_, address):
        async with connect(EchoClient, address, token_file=ours) as client:
            for file, tokens in (
                (theirs, "new-token-0123456789\nold-token-0123456789\n"),
                (ours, "new-token-0123456789\n"),
                (theirs, "new-token-0123456789\n"),
            ):
                file.write_text(tokens)
                await client.say(Note(), timeout=5)
        ours.write_text("old-token-0123456789\n")
        assert (
            "UNAUTHENTICATED: this token is not accepted"
            in call(project, "--target", address, "--token-file", "certs/ours")[1]
        )


async def test_certificates_are_renewed_while_both_sides_run(project: Project, certs: Path) -> None:
    """`toolkit certs` with a new authority; the client is told to trust both for a while."""
    tls = Tls(ca=certs / "trusted.crt")
    (certs / "trusted.crt").write_bytes((certs / "ca.crt").read_bytes())
    with replica(project, "--cert", "certs/leaf.crt", "--key", "certs/leaf.key") as (_, address):
        async with connect(EchoClient, address, tls=tls) as client:
            await client.say(Note(), timeout=5)
            both = (certs / "ca.crt").read_bytes() + (certs / "foreign/ca.crt").read_bytes()
            (certs / "trusted.crt").write_bytes(both)
            for suffix in ("key", "crt"):
                shutil.copy(certs / f"foreign/leaf.{suffix}", certs / f"leaf.{suffix}")
            await client.say(Note(), timeout=5)
        assert call(project, "--target", address, "--ca", "certs/foreign/ca.crt") == (0, "hi")


async def test_a_handle_without_what_it_needs_stops_the_start_at_once(project: Project, certs: Path) -> None:
    with replica(project, "--token-file", "certs/token", "--cert", "certs/leaf.crt", "--key", "certs/leaf.key") as (
        _,
        leaf,
    ):
        for options, said in {
            (): "It may speak TLS",
            ("--ca", "certs/foreign/ca.crt"): "its certificate is not signed by the authority",
            ("--ca", "certs/ca.crt"): "does not let us in: a token is needed",
        }.items():
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "toolkit.replica", "classes:Caller", "--handle", f"leaf={leaf}", *options],
                cwd=project.folder,
                env=environ(),
                capture_output=True,
                text=True,
                check=False,
            )
            last = done.stderr.splitlines()[-1]
            assert (done.returncode, last.startswith("error: handle leaf: "), said in last) == (1, True, True), last


def memory(pid: int, what: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most so far."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("connections", [1, 8, 64])
async def test_uploads_without_a_token_are_refused_before_they_are_read(
    project: Project, certs: Path, connections: int, record_property: pytest.RecordProperty
) -> None:
    """64 of 16 MiB at once: each is UNAUTHENTICATED, and the replica's memory grows by at most 64 MiB."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with replica(project, "--token-file", "certs/token") as (pid, address):
        channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]

        async def upload(index: int, body: bytes) -> str:
            try:
                await channels[index % connections].unary_unary("/services.echo.v1.Echo/Say")(body, timeout=60)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        await asyncio.gather(*(upload(index, b"x") for index in range(connections)))  # connected, and warm
        before = memory(pid, "VmRSS")
        body = bytes(UPLOAD_BYTES)
        answers = Counter(await asyncio.gather(*(upload(index, body) for index in range(UPLOADS))))
        growth = memory(pid, "VmHWM") - before
        for channel in channels:
            await channel.close()
    record_property("growth_mib", round(growth / MIB, 1))
    assert answers == {"UNAUTHENTICATED": UPLOADS}
    assert growth <= MAX_GROWTH, f"{growth / MIB:.0f} MiB"


async def test_uploads_of_the_wrong_caller_and_to_health_are_refused_before_they_are_read_too(
    project: Project, certs: Path
) -> None:
    asks = (
        "--cert",
        "certs/leaf.crt",
        "--key",
        "certs/leaf.key",
        "--caller-ca",
        "certs/ca.crt",
        "--allow",
        "client.test",
    )
    pem = [(certs / name).read_bytes() for name in ("ca.crt", "stranger.key", "stranger.crt")]
    options = [("grpc.max_send_message_length", -1), ("grpc.ssl_target_name_override", "leaf.test")]
    with replica(project, *asks) as (pid, address):
        async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*pem), options=options) as channel:

            async def upload(method: str, body: bytes) -> str:
                try:
                    await channel.unary_unary(method)(body, timeout=60)
                except grpc.aio.AioRpcError as error:
                    return error.code().name
                return "OK"

            say, check = "/services.echo.v1.Echo/Say", "/grpc.health.v1.Health/Check"
            assert [await upload(say, b"x"), await upload(check, b"")] == ["PERMISSION_DENIED", "OK"]
            before = memory(pid, "VmRSS")
            body = bytes(UPLOAD_BYTES)
            answers = await asyncio.gather(*(upload(method, body) for method in (say, check) for _ in range(8)))
            assert answers[:8] == ["PERMISSION_DENIED"] * 8
            assert memory(pid, "VmHWM") - before <= MAX_GROWTH


def test_no_secret_is_in_the_environment_or_on_the_command_line(project: Project, certs: Path) -> None:
    token = (certs / "token").read_text().strip()
    (project.folder / "graph.yaml").write_text(
        GRAPH.replace("LEAF_PORT", str(Project(project.folder).port)).replace(" PORT", f" {project.port}")
    )
    with up(project.folder / "graph.yaml") as running:
        running.wait_ready()
        seen = "".join(
            Path(f"/proc/{pid}/{what}").read_text(errors="replace")
            for pid in (running.process.pid, *running.replicas())
            for what in ("environ", "cmdline")
        )
        running.signal(signal.SIGTERM)
        running.wait_exit()
    assert "TOOLKIT_INCOMING" in seen
    for secret in (token, "PRIVATE KEY"):
        assert secret not in seen + "\n".join(running.said)
    assert os.fspath(certs / "token") in seen
