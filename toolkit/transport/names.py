"""Where replicas are that a name stands for: `dns:///models:50051` is each address that `models` resolves to."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from toolkit.spec import DNS, check_target

log = logging.getLogger("toolkit")
ASK_EVERY: Final = 5.0
PAUSE: Final = 1.0
"""Seconds between two times of asking at least, and at most while nothing is known."""
PATIENCE: Final = 5.0
"""Seconds that an answer may take."""
Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
"""Host and port → each `ADDRESS:PORT` that they stand for. Raises OSError where there is none."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """As this machine resolves names: its hosts file, DNS, whatever it is told to ask."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [_joined(str(where[0]), port) for _, _, _, _, where in found]


class Names:
    """Addresses of which some are names. These are resolved again and again, and sooner when `ask_again` is called."""

    def __init__(
        self, addresses: Iterable[str], resolve: Resolve = resolve, *, every: float = ASK_EVERY, pause: float = PAUSE
    ) -> None:
        """Raises ValueError for a name that is not `dns:///HOST:PORT`."""
        self.troubles: dict[str, str] = {}
        """Name → why it does not resolve now."""
        self._known: dict[str, Sequence[str]] = {
            address: () if address.startswith(DNS) else (address,) for address in addresses
        }
        for given in self._known:
            if given.startswith("dns:"):
                check_target(given)
        self._resolve = resolve
        self._every = every
        self._pause = pause
        self._again = asyncio.Event()

    def __str__(self) -> str:
        """As they were given, each name with what is wrong with it."""
        return ", ".join(f"{name} ({self.troubles[name]})" if name in self.troubles else name for name in self._known)

    @property
    def names(self) -> Sequence[str]:
        return [given for given in self._known if given.startswith(DNS)]

    @property
    def addresses(self) -> Sequence[str]:
        """What was given as such, and what the names stand for, as far as it is known."""
        return [address for addresses in self._known.values() for address in addresses]

    def authority(self, address: str) -> str:
        """The `HOST:PORT` that a server at `address` is called by; empty where `address` was given as such."""
        for name, addresses in self._known.items():
            if address in addresses:
                return name.removeprefix(DNS) if name.startswith(DNS) else ""
        return ""

    def ask_again(self) -> None:
        """What is known may be out of date."""
        self._again.set()

    async def watch(self) -> AsyncIterator[Sequence[str]]:
        """`addresses`, each time that the names were resolved. Where one does not resolve, what it stood for stays."""
        while True:
            self._again.clear()
            async with asyncio.TaskGroup() as group:
                for name in self.names:
                    group.create_task(self._ask(name))
            yield self.addresses
            await asyncio.sleep(self._pause)
            if all(self._known.values()):
                await _wait(self._again, self._every - self._pause)

    async def _ask(self, name: str) -> None:
        host, _, port = name.removeprefix(DNS).rpartition(":")
        try:
            async with asyncio.timeout(PATIENCE):
                found = tuple(dict.fromkeys(await self._resolve(host.strip("[]"), int(port))))
            if not found:
                raise OSError("it stands for no address")
        except (OSError, UnicodeError) as error:
            self._failed(name, error)
        else:
            self._known[name] = found
            if self.troubles.pop(name, None) is not None:
                log.info("%s resolves: %s", name, ", ".join(found))

    def _failed(self, name: str, error: OSError | UnicodeError) -> None:
        why = getattr(error, "strerror", None) or str(error) or f"no answer within {PATIENCE:g} s"
        if name not in self.troubles:
            kept = ", ".join(self._known[name])
            log.warning("%s does not resolve: %s%s", name, why, f"; calls go on to {kept}" if kept else "")
        self.troubles[name] = why


async def _wait(event: asyncio.Event, timeout: float) -> None:
    """Until the event, or `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
