"""Drives the real `toolkit up`: real processes, real signals, nothing that waits by the clock."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import pick_port

ROOT = Path(__file__).parents[2]

CLASSES = '''
import asyncio, os, subprocess, sys, time
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.service import depends, progress


class Leaf(EchoBase):
    """`say` does what its text asks for."""

    async def say(self, request, context):
        match request.text.split():
            case ["wait", seconds]:
                print("call has begun", flush=True)
                await asyncio.sleep(float(seconds))
            case ["block", seconds]:
                print("call has begun", flush=True)
                time.sleep(float(seconds))
        return Note(text=request.text, number=os.getpid())


class Caller(EchoBase):
    leaf = depends(EchoClient)

    async def say(self, request, context):
        return await self.leaf.say(request)


class Wrong(EchoBase):
    leav = depends(EchoClient)


class Ring(EchoBase):
    entry = depends(EchoClient)


class Broken(EchoBase):
    def __init__(self):
        raise RuntimeError("no weights here")


class Slow(EchoBase):
    def __init__(self):
        progress("read weights", 3, 10)
        time.sleep(600)


class Chatty(Leaf):
    def __init__(self):
        sys.stdout.buffer.write(b"\\xff\\x1b[31mred\\x1b[0m\\n" + b"x" * 700_000 + b"\\n")
        sys.stdout.buffer.write(b"".join(b"%d%%\\r" % n for n in range(100)) + b"100%\\n")
        sys.stdout.flush()
        print("to stderr", file=sys.stderr, flush=True)


class Parent(Leaf):
    def __init__(self):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)


class Dies(Leaf):
    """Once."""

    async def say(self, request, context):
        if request.text == "die" and not os.path.exists("has-died"):
            open("has-died", "w").close()
            os._exit(3)
        return await super().say(request, context)


class Spreads(Leaf):
    """Starts what starts something in a session of its own."""

    def __init__(self):
        code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600'], start_new_session=True)"
        code += "; print('grandchild', p.pid, flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        print(child.stdout.readline(), flush=True)


class Deaf(Leaf):
    """Does not hear SIGTERM."""

    async def __aenter__(self):
        import asyncio, signal
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return self
'''


@dataclass
class Project:
    """A folder with classes and graph files, and where its entry listens."""

    folder: Path
    port: int = field(default_factory=pick_port)

    def write(self, services: str) -> Path:
        """A graph file with these deployments; `PORT` stands for the entry's port."""
        (self.folder / "classes.py").write_text(CLASSES)
        lines = "".join(f"  {line}\n" for line in services.strip().splitlines())
        path = self.folder / "graph.yaml"
        path.write_text(f"name: test\nentry: entry\nservices:\n{lines}".replace("PORT", str(self.port)))
        return path


def environ(**more: str) -> dict[str, str]:
    """The toolkit is found where it is not installed, and the examples too."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}",
        "XDG_STATE_HOME": tempfile.gettempdir() + f"/toolkit-tests-{os.getpid()}",
        **more,
    }


@dataclass
class Running:
    """`toolkit up` under way. All that it has said so far is in `said`."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def wait_line(self, part: str) -> str:
        """The first line from here on that holds `part`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if part in line:
                return line
        raise AssertionError(f"{part!r} was never said; exit code {self.process.wait()}:\n" + "\n".join(self.said))

    def wait_ready(self) -> str:
        return self.wait_line("ready: ")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """Its exit code; `said` is whole then."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.said += self.process.stderr.read().splitlines()
        assert self.process.stdout.read() == "", "all that up shows goes to standard error"
        return self.process.wait()

    def replicas(self) -> list[int]:
        """Process ids of its children, but for its guardian."""
        return [pid for pid in children(self.process.pid) if b"toolkit.replica" in read_command(pid)]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said if line.startswith("error: ")]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def up(path: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "up", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=path.parent,
        env=environ() if env is None else env,
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def toolkit(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *arguments],
        cwd=folder,
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
    )


def begin(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """A verb under way."""
    command = [sys.executable, "-m", "toolkit", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def watch(pids: list[int]) -> Iterator[list[int]]:
    """Descriptors that turn readable when these processes end."""
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def wait_gone(fds: list[int], timeout: float) -> bool:
    left = set(fds)
    while left:
        ended, _, _ = select.select(left, [], [], timeout)
        if not ended:
            return False
        left -= set(ended)
    return True
