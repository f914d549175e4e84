"""A deployment that is a program of its own, in any language: started, told where to listen, watched, and stopped.

The process that would be a replica looks after the program instead, so that the launcher has nothing to learn: it says ready when
`grpc.health.v1` there does, and ends when the program ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from toolkit.contract import wait_serving
from toolkit.control import Control
from toolkit.errors import StartError
from toolkit.security import PLAIN, open_channel
from toolkit.spec import PREFIX, ReplicaSpec
from toolkit.tasks import wait_closed
from toolkit.transport.grpc import target

TELL_EVERY: Final = 1.0
"""Seconds between two words to the launcher, by which it knows that this process turns."""
VARIABLE: Final = PREFIX + "LISTEN"


async def run_command(spec: ReplicaSpec, control: Control, environ: Mapping[str, str]) -> int:
    """Until told to stop, or until the program ends. Returns how many calls its end may have cut off: 1
    where it had to be killed. Raises StartError where it cannot be
    started, ends before it is ready, or ends while nobody asked it to.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control.listen(lambda addresses: None, _end_group)
    process = await _start(spec, environ)
    exited = asyncio.create_task(process.wait())
    stopping = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(_wait_serving(spec))
    telling: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(spec.start_timeout):
            await asyncio.wait((exited, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            if spec.reports_files:
                control.loaded(_own_files(spec.command))
            control.ready(spec.listen)
            telling = asyncio.create_task(_tell(control))
            await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise StartError(_obituary(spec, exited.result(), was_ready=telling is not None))
        control.draining()
        return await _stop(process, exited, spec.drain_timeout)
    except TimeoutError:
        raise StartError(f"{spec.command[0]} is not ready after {spec.start_timeout:g} s at {spec.listen[0]}") from None
    finally:
        await wait_closed(*(task for task in (serving, stopping, telling) if task is not None))
        if process.returncode is None:
            process.kill()
            await exited


async def _start(spec: ReplicaSpec, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    address = spec.listen[0]
    host, _, port = address.rpartition(":")
    placeholders = {"{listen}": address, "{host}": host, "{port}": port}
    env = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    try:
        return await asyncio.create_subprocess_exec(
            *(_filled(part, placeholders) for part in spec.command),
            env={**env, VARIABLE: address},
            stdin=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise StartError(f"{spec.command[0]} cannot be started: {error.strerror}") from None


def _own_files(command: Sequence[str]) -> list[str]:
    """The files of the project that a command names; what it is made of beyond these nobody here can tell."""
    own = Path.cwd().resolve()
    found = (Path(part).resolve() for part in command if "\0" not in part)
    return sorted({str(path) for path in found if path.is_relative_to(own) and path.is_file()})


def _filled(text: str, placeholders: Mapping[str, str]) -> str:
    for name, value in placeholders.items():
        text = text.replace(name, value)
    return text


async def _wait_serving(spec: ReplicaSpec) -> None:
    channel = open_channel(target(spec.listen[0]), (), spec.outgoing.get(spec.deployment, PLAIN))
    async with channel:
        await channel.channel_ready()
        await wait_serving(channel, "")


async def _tell(control: Control) -> None:
    while control.has_launcher:
        control.load(0, 0, 0.0)
        await asyncio.sleep(TELL_EVERY)


async def _stop(process: asyncio.subprocess.Process, exited: asyncio.Task[int], timeout: float) -> int:
    """It drains by itself at SIGTERM, as programs do."""
    if process.returncode is None:
        process.terminate()
        done, _ = await asyncio.wait([exited], timeout=timeout)
        return 0 if done else 1
    return 0


def _obituary(spec: ReplicaSpec, status: int, *, was_ready: bool) -> str:
    program, when = spec.command[0], "while it served" if was_ready else "before it was ready"
    if status < 0:
        return f"{program} was ended by {signal.Signals(-status).name} {when}; its last lines are above"
    return f"{program} exited with code {status} {when}; its last lines are above"


def _end_group() -> None:
    """The launcher is gone: nobody waits for a drain. The program is of the group that the launcher gave us."""
    os.killpg(0, signal.SIGKILL)
