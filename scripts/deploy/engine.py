"""A docker engine of our own, and a base image for it where no registry is reached."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.chaos_cases.case import say
from scripts.deploy.commands import POLL, StepError, command, docker, wait_until

BASE, RUNTIME = "toolkit-base", "toolkit-runtime"
PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
}
ONLINE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
NAMESPACES = (*ONLINE, "--net")
"""What runs in these leaves no process, mount, network or firewall rule behind, however it ends."""
WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""And it ends when we do, though nobody asks us before."""
FOLDERS = "toolkit-deploy-"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpc-model-toolkit" / "deploy"
CGROUPS = Path("/sys/fs/cgroup")
ENDED_AFTER = 10.0
"""Seconds at most, after a kill."""
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache", "var/lib/apt/lists")
"""Of a Debian; images of others are without it too."""

_LIBRARY = r"lib(?:/(?:python3[.\d]*(?:/.*)?|[^/]+-linux-gnu[^/]*(?:/[^/]+\.so[^/]*)?))?"
_PYTHON_ALONE = re.compile(
    rf"\./(?:(?:bin|lib|lib64|sbin|tmp|etc)?|etc/.*|usr(?:/(?:bin(?:/python3[^/]*)?|{_LIBRARY}|lib64(?:/.*)?))?)"
)
"""Of a base image: what is in one without a shell and a package manager."""

MEMORY = 6 << 30
"""Bytes that must be free for the engine to keep its data there; it needs a quarter of them."""


class NoEngineError(Exception):
    """Why none can run here."""


@dataclass(frozen=True, slots=True)
class Base:
    archive: Path
    python: str
    """`3.11`."""


def install() -> None:
    """What is missing, with apt. Raises NoEngineError."""
    if not sys.platform.startswith("linux"):
        raise NoEngineError("containers need Linux")
    if os.geteuid():
        raise NoEngineError("root starts an engine, and nobody else")
    try:
        command(*WITH_US, *NAMESPACES, "true")
    except StepError as error:
        raise NoEngineError(f"no namespaces of our own here: {error}") from None
    missing = sorted({package for tool, package in PACKAGES.items() if not shutil.which(tool)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise NoEngineError(f"{', '.join(missing)}: not installed, and there is no apt-get to do so")
    say(f"apt-get install {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = ("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing)
    try:
        try:
            command(*words, timeout=240, env=env)
        except StepError:
            command("apt-get", "update", "--quiet", timeout=120, env=env)
            command(*words, timeout=240, env=env)
    except StepError as error:
        raise NoEngineError(f"{', '.join(missing)} cannot be installed: {error}") from None


def base_image() -> Base:
    """This machine's own distribution with Python and nothing else; made once."""
    release = command("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").strip()
    for archive in CACHE.glob(f"base-{release}-*.tar"):
        return Base(archive, archive.stem.rpartition("-")[2])
    say(f"debootstrap: a base image of {release} (a minute or two, once)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="toolkit-base-") as root:
        # in namespaces, for it mounts /proc in there, and a folder with mounts cannot be removed
        words = ("debootstrap", "--variant=minbase", "--include=python3,python3-venv", release, root)
        try:
            command(*WITH_US, *ONLINE, *words, timeout=400)
        except StepError as error:
            raise NoEngineError(f"no base image: {error}") from None
        version = "import sys; print('%d.%d' % sys.version_info[:2])"
        python = command("chroot", root, "python3", "-c", version).strip()
        if tuple(map(int, python.split("."))) < (3, 11):
            raise NoEngineError(f"{release} has Python {python}, and the toolkit needs 3.11")
        excluded = [f"--exclude=./{each}/*" for each in (*NOT_NEEDED, "proc", "sys", "dev")]
        unfinished = CACHE / "base.part"
        command("tar", "-C", root, *excluded, "--numeric-owner", "-cf", str(unfinished), ".", timeout=120)
        return Base(unfinished.rename(CACHE / f"base-{release}-{python}.tar"), python)


def _write_runtime(base: Path, runtime: Path) -> None:
    with tarfile.open(base) as found, tarfile.open(runtime, "w") as kept:
        for member in found:
            if _PYTHON_ALONE.fullmatch(member.name.rstrip("/")) or member.name == ".":
                kept.addfile(member, found.extractfile(member) if member.isfile() else None)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[None]:
    """An engine with the base images, for `docker` and `docker-compose`; its data is in `folder`."""
    command("ip", "link", "set", "lo", "up")
    command("mount", "-t", "tmpfs", "tmpfs", "/run")  # the sockets there belong to the machine's own engine
    socket, log = folder / "docker.sock", folder / "dockerd.log"
    os.environ["DOCKER_HOST"] = f"unix://{socket}"
    os.environ["DOCKER_CONFIG"] = str(folder)
    data = folder / "data"
    data.mkdir()
    if _free_memory() >= MEMORY:
        command("mount", "-t", "tmpfs", "tmpfs", str(data))  # with a disk that others use a build takes minutes
    words = {"--data-root": data, "--exec-root": folder / "run", "--pidfile": folder / "docker.pid"}
    options = [f"{name}={value}" for name, value in {**words, "--cgroup-parent": f"/{folder.name}"}.items()]
    with log.open("wb") as output:
        daemon = subprocess.Popen(  # noqa: ASYNC220 - once
            ["dockerd", "--host", f"unix://{socket}", *options], stdout=output, stderr=output
        )
    try:
        await _wait_answer(daemon, log)
        base, runtime = folder / "base.tar", folder / "runtime.tar"
        await asyncio.to_thread(_write_runtime, base, runtime)
        for archive, image in ((base, BASE), (runtime, RUNTIME)):
            await docker("import", str(archive), f"{image}:latest")
            archive.unlink()
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        await asyncio.to_thread(_wait_exit, daemon)


async def _wait_answer(daemon: subprocess.Popen[bytes], log: Path) -> None:
    async def answers() -> bool:
        if daemon.poll() is not None:
            raise NoEngineError(f"dockerd does not run here: {_last_line(log)}")
        try:
            await docker("version")
        except StepError:
            return False
        return True

    await wait_until("dockerd answers", answers, timeout=60)


def _wait_exit(daemon: subprocess.Popen[bytes]) -> None:
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()


def _free_memory() -> int:
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) << 10


@contextmanager
def own_folder() -> Iterator[Path]:
    """For one engine. What those left that were killed goes away too."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*-*"):
        if not Path("/proc", left.name.removeprefix(FOLDERS).partition("-")[0]).exists():
            _remove(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-"))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    _remove_cgroups(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_cgroups(name: str) -> None:
    """No namespace does it. What was in them may still be about to end."""
    until = time.monotonic() + ENDED_AFTER
    while (left := [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(name)]) and time.monotonic() < until:
        for each in (each for group in left for each in reversed([*group.glob("**/")])):
            with suppress(OSError):
                each.rmdir()
        time.sleep(POLL)


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2]


if __name__ == "__main__":
    try:
        install()
        base_image()
    except NoEngineError as reason:
        say(f"no engine: {reason}")
