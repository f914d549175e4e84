"""Streams through three real services: nothing is lost, doubled or cut short, and nobody goes on for a reader that left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.echo.v1.echo_toolkit import EchoClient, Note
from tests.integration.alone import Alone, alone
from toolkit.connect import connect
from toolkit.errors import Code, ServiceError

pytestmark = pytest.mark.integration

CLASSES = """
import sys
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient
from toolkit.service import depends

class Source(Echo):
    async def repeat(self, request, context):
        try:
            async for note in super().repeat(request, context):
                yield note
        finally:
            print("the source has ended at", note.number, file=sys.stderr, flush=True)

class Chained(EchoBase):
    source = depends(EchoClient)

    async def repeat(self, request, context):
        async for note in self.source.chat(self.source.repeat(request)):
            yield note

    async def chat(self, requests, context):
        async for note in self.source.chat(requests):
            yield note
"""
ITEMS = 2000


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[list[Alone]]:
    """Three services, each the source of the next, and the last one's address is `unix:TMP/2`."""
    (tmp_path / "classes.py").write_text(CLASSES)
    with ExitStack() as stack:
        found = []
        for number, name in enumerate(("Source", "Chained", "Chained")):
            handle = ("--handle", f"source=unix:{tmp_path}/{number - 1}") if number else ()
            options = (f"classes:{name}", *handle, "--listen", f"unix:{tmp_path}/{number}")
            found.append(stack.enter_context(alone(*options, folder=tmp_path)))
        for each in found:
            each.wait_ready()
        yield found


def mixed() -> list[Note]:
    sizes = random.Random(7)
    data = sizes.randbytes(20_000)
    return [Note(number=n, blob=data[: int(20_000 ** sizes.random()) - 1]) for n in range(ITEMS)]


async def each(notes: list[Note]) -> AsyncIterator[Note]:
    for note in notes:
        yield note


async def test_items_of_mixed_sizes_come_through_whole_and_in_order(chain: list[Alone], tmp_path: Path) -> None:
    notes = mixed()
    async with connect(EchoClient, f"unix:{tmp_path}/2") as echo:
        assert [note async for note in echo.chat(each(notes), timeout=120)] == notes


async def test_a_reader_that_leaves_stops_the_source_soon(chain: list[Alone], tmp_path: Path) -> None:
    async with (
        connect(EchoClient, f"unix:{tmp_path}/1") as echo,
        echo.repeat(Note(times=1_000_000), timeout=120) as notes,
    ):
        assert [(await anext(notes)).number for _ in range(100)] == list(range(100))
    line = await asyncio.to_thread(chain[0].wait_line, "the source has ended")
    assert int(line.split()[-1]) < 10_000


async def test_a_source_that_dies_is_an_error_and_no_end(chain: list[Alone], tmp_path: Path) -> None:
    async with connect(EchoClient, f"unix:{tmp_path}/2") as echo:
        notes, found = echo.repeat(Note(times=1_000_000), timeout=120), list[int]()

        async def read() -> None:
            async for note in notes:
                found.append(note.number)
                if note.number == 100:
                    os.kill(chain[0].process.pid, signal.SIGKILL)

        with pytest.raises(ServiceError) as caught:
            await read()
    assert caught.value.code == Code.UNAVAILABLE
    assert caught.value.path[-1] == "source"
    assert found == list(range(len(found)))
