"""A replica's side of the socket to its launcher."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from toolkit.control import Addresses, Control


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Control]]:
    """The launcher's end, and what a replica makes of the other."""
    ours, theirs = socket.socketpair()
    control = Control(theirs.detach())
    with ours, closing(control):
        yield ours, control


def ignore(addresses: Addresses) -> None:
    pass


def events(launcher: socket.socket, count: int) -> list[dict[str, Any]]:
    with launcher.makefile() as lines:
        return [json.loads(next(lines)) for _ in range(count)]


def test_each_event_is_one_line_of_json(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    control.described({"contract": "a.B", "handles": {"c": "d.E"}})
    control.progress("read\nweights", 3, None)
    control.waiting(["c"])
    control.ready(("127.0.0.1:1",))
    control.draining()
    control.failed("ä")
    assert events(launcher, 6) == [
        {"event": "described", "contract": "a.B", "handles": {"c": "d.E"}},
        {"event": "progress", "phase": "read\nweights", "done": 3, "total": None},
        {"event": "waiting", "for": ["c"]},
        {"event": "ready", "addresses": ["127.0.0.1:1"]},
        {"event": "draining"},
        {"event": "failed", "message": "ä"},
    ]


def test_of_more_samples_than_fit_into_a_line_the_first_are_told(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    samples = [["toolkit_server_queued", [str(number) * 100], number] for number in range(5000)]
    sending = threading.Thread(target=control.measured, args=[samples])
    sending.start()
    ((event),) = events(launcher, 1)
    sending.join()
    assert 100 < len(event["samples"]) < len(samples)
    assert event["samples"] == samples[: len(event["samples"])]


def test_without_a_launcher_nothing_happens() -> None:
    control = Control(None)
    control.ready(())
    assert not control.has_launcher


async def test_events_of_many_threads_are_whole_even_where_the_launcher_is_slow(
    pair: tuple[socket.socket, Control],
) -> None:
    """More than the socket holds, sent before anything is read."""
    launcher, control = pair
    control.listen(ignore, lambda: None)
    phase = "x" * 50_000

    def tell(number: int) -> None:
        for k in range(10):
            control.progress(phase, number, k)

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    found = await asyncio.to_thread(events, launcher, 80)
    for thread in threads:
        thread.join()
    assert {(each["done"], each["total"]) for each in found} == {(n, k) for n in range(8) for k in range(10)}
    assert control.has_launcher


async def test_the_end_of_the_launcher_is_told_once(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    gone = asyncio.Event()
    control.listen(ignore, gone.set)
    launcher.sendall(b"what a launcher never says")
    launcher.close()
    await gone.wait()


async def test_events_after_the_launcher_s_end_are_dropped(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    launcher.close()
    control.ready(())
    control.draining()
    assert not control.has_launcher


async def test_addresses_are_told_whole_however_they_arrive(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    heard: asyncio.Queue[Addresses] = asyncio.Queue()
    control.listen(heard.put_nowait, lambda: None)
    line = json.dumps({"addresses": {"leaf": ["unix:/a", "unix:/b"], "other": []}}).encode() + b"\n"
    for start in range(0, len(line), 7):
        launcher.sendall(line[start : start + 7])
        await asyncio.sleep(0)
    launcher.sendall(b'{"addresses": {"leaf": []}}\n')
    assert await heard.get() == {"leaf": ("unix:/a", "unix:/b"), "other": ()}
    assert await heard.get() == {"leaf": ()}


@pytest.mark.parametrize("line", [b"3", b"[]", b"\xff", b'{"addresses": [1]}', b'{"addresses": {"a": 3}}', b'"x"'])
async def test_what_a_launcher_should_not_say_is_dropped(pair: tuple[socket.socket, Control], line: bytes) -> None:
    launcher, control = pair
    heard: asyncio.Queue[Addresses] = asyncio.Queue()
    control.listen(heard.put_nowait, lambda: None)
    launcher.sendall(line + b'\n{"addresses": {}}\n')
    assert await heard.get() == {}


def test_a_launcher_that_went_before_it_was_listened_to_is_noticed(pair: tuple[socket.socket, Control]) -> None:
    launcher, control = pair
    assert not control.is_over()
    launcher.close()
    assert control.is_over()
