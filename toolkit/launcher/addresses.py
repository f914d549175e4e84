"""Where replicas listen: Unix sockets in a private folder, and TCP on the loopback for those with a port."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from toolkit.errors import ConflictError
from toolkit.launcher.placement import Placed
from toolkit.launcher.security import LOOPBACK

MAX_SOCKET_BYTES = 103
"""What fits into `sockaddr_un.sun_path` everywhere, its NUL included (macOS has 104, Linux 108)."""
_PREFIX = "toolkit-"
_LONGEST_NAME = len("/" + "n" * 40 + ".255.9999.sock")


@contextlib.contextmanager
def runtime_folder(environ: Mapping[str, str]) -> Iterator[Path]:
    """A new folder that only this user may enter, gone at the end with all in it.

    It is locked while its launcher lives, so that the next one can sweep away what a killed launcher left. Raises
    ConflictError where it cannot be made.
    """
    base = choose_base(environ)
    sweep(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    except OSError as error:
        raise ConflictError(
            f"cannot make a folder for sockets in {base}: {error.strerror}; let XDG_RUNTIME_DIR name one where you may"
        ) from None
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose_base(environ: Mapping[str, str]) -> Path:
    """`XDG_RUNTIME_DIR` where it is ours and short enough, else /tmp."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    longest = len(os.fsencode(runtime)) + len("/" + _PREFIX + "xxxxxxxx") + _LONGEST_NAME
    if runtime.is_absolute() and longest <= MAX_SOCKET_BYTES and os.access(runtime, os.W_OK | os.X_OK):
        return runtime
    return Path("/tmp")


def sweep(base: Path) -> None:
    """Remove the folders here that a dead launcher of this user left."""
    for lock in base.glob(_PREFIX + "*/lock"):
        with contextlib.suppress(OSError), lock.open("ab") as file:
            if lock.stat().st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock.new").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "lock.new").rename(folder / "lock")  # named only once it is held: no sweep can come between
        yield


def choose_addresses(
    replicas: Iterable[Placed],
    folder: Path,
    *,
    pick_port: Callable[[], int] | None = None,
    on_tcp: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Deployment → one address for each of its replicas, by index. With `pick_port`, TCP instead of sockets;
    for the deployments `on_tcp` in any case.
    """
    found: dict[str, tuple[str, ...]] = {}
    for replica in replicas:
        address = choose_address(
            replica, 1, folder, pick_port=pick_free_port if replica.deployment in on_tcp else pick_port
        )
        found[replica.deployment] = (*found.get(replica.deployment, ()), address)
    return found


def choose_address(replica: Placed, number: int, folder: Path, *, pick_port: Callable[[], int] | None = None) -> str:
    """Of a replica, the `number`-th in its place: no two ever share one."""
    if pick_port is not None:
        return f"{LOOPBACK}:{pick_port()}"
    return f"unix:{folder / f'{replica.deployment}.{replica.index}.{number % 10_000}.sock'}"


def pick_port_where_needed() -> Callable[[], int] | None:
    """A way to choose free ports, for a platform that lacks Unix sockets."""
    return None if hasattr(socket, "AF_UNIX") else pick_free_port


def pick_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
