"""A replica's side of the socket to its launcher."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any

import pytest
import uvloop

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


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_launcher_that_stands_still_holds_up_nobody_and_hears_all_but_what_is_said_again(
    pair: tuple[socket.socket, Control], run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """As where somebody types Ctrl-Z: more than the socket holds, and nobody reads."""
    launcher, control = pair
    samples = [["toolkit_server_queued", [str(number) * 100], number] for number in range(400)]
    is_heard = threading.Event()

    async def serve() -> None:
        control.listen(ignore, lambda: None)
        control.waiting(["a"])
        for _ in range(100):
            control.load(1, 2, 3.0)
            control.measured(samples)
        control.ready(("127.0.0.1:1",))
        control.draining()
        told.set()
        while not is_heard.is_set():  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0.01)

    told = threading.Event()
    serving = threading.Thread(target=run, args=[serve()], daemon=True)
    serving.start()
    assert told.wait(20), "the event loop waits for the launcher"
    found: list[dict[str, Any]] = []
    with launcher.makefile() as lines:
        while not found or found[-1]["event"] != "draining":
            found.append(json.loads(next(lines)))
    is_heard.set()
    serving.join()
    kinds = [each["event"] for each in found]
    assert (kinds[0], kinds[-2:]) == ("waiting", ["ready", "draining"])
    assert 0 < kinds.count("measured") < 100
    assert all(each["samples"] == samples for each in found if each["event"] == "measured")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_left_to_say_is_said_before_the_end(
    pair: tuple[socket.socket, Control], run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    launcher, control = pair

    async def serve() -> None:
        control.listen(ignore, lambda: None)
        for _ in range(100):
            control.measured([["x" * 10_000]])
        control.draining()

    run(serve())
    ending = threading.Thread(target=control.finish)
    ending.start()
    with launcher.makefile() as lines:
        kinds = [json.loads(next(lines))["event"]]
        while kinds[-1] != "draining":
            kinds.append(json.loads(next(lines))["event"])
    ending.join()
    assert 1 < len(kinds) < 100


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
