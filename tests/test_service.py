"""`depends()`, and instances whose handles are in place before their constructor runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from services.scoring.v1.scoring_toolkit import ScoringClient
from toolkit.context import Context
from toolkit.errors import ToolkitError
from toolkit.service import Dependency, construct, dependencies, depends, progress, reporter
from toolkit.testing import serve


class Front(EchoBase):
    leaf = depends(EchoClient)

    def __init__(self, *, model: str = "m") -> None:
        self.seen = (self.leaf, model)

    async def say(self, request: Note, context: Context) -> Note:
        return await self.leaf.say(request)


class Wider(Front):
    scoring = depends(ScoringClient)


class Other(Wider):
    leaf = depends(ScoringClient)  # type: ignore[assignment]  # a subclass may want another


def client() -> EchoClient:
    """Never called here."""
    return EchoClient(cast("Any", None))


def test_a_handle_that_is_not_connected_says_how_to_connect_it() -> None:
    with pytest.raises(ToolkitError) as caught:
        _ = object.__new__(Front).leaf
    assert str(caught.value) == (
        "Front.leaf is not connected. `toolkit up` connects it; a test sets it: service.leaf = client"
    )


def test_on_the_class_a_dependency_tells_its_name_and_client() -> None:
    found = cast("Any", Front).leaf
    assert isinstance(found, Dependency)
    assert (found.name, found.client) == ("leaf", EchoClient)


def test_the_handles_of_a_class_are_those_of_its_bases_too() -> None:
    assert dependencies(Echo) == {}
    assert dependencies(Front) == {"leaf": EchoClient}
    assert dependencies(Wider) == {"leaf": EchoClient, "scoring": ScoringClient}
    assert dependencies(Other) == {"leaf": ScoringClient, "scoring": ScoringClient}


def test_handles_are_in_place_when_the_constructor_runs() -> None:
    leaf = client()
    front = construct(Front, {"leaf": leaf}, {"model": "n"})
    assert isinstance(front, Front)
    assert front.seen == (leaf, "n")


def test_instances_do_not_share_their_handles() -> None:
    one, two = client(), client()
    first, second = (cast("Front", construct(Front, {"leaf": each}, {})) for each in (one, two))
    assert (first.leaf, second.leaf) == (one, two)


async def test_a_handle_can_be_set_by_a_test() -> None:
    async with serve(Echo(), EchoClient) as leaf:
        front = cast("Front", construct(Front, {"leaf": leaf}, {}))
        async with serve(front, EchoClient) as echo:
            assert await echo.say(Note(text="through")) == Note(text="through")


def test_progress_goes_to_who_started_the_service_and_else_nowhere() -> None:
    progress("heard by nobody")
    heard: list[tuple[str, float | None, float | None]] = []
    token = reporter.set(lambda *each: heard.append(each))
    progress("read weights", 3, 10)
    progress("warm up")
    reporter.reset(token)
    assert heard == [("read weights", 3, 10), ("warm up", None, None)]


async def test_a_service_is_entered_and_left_with_what_it_serves() -> None:
    events: list[str] = []

    class Pooled(EchoBase):
        async def __aenter__(self) -> Pooled:
            events.append("entered")
            return self

        async def __aexit__(self, *error: object) -> None:
            events.append("left")

        async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
            events.append("called")
            yield request

    async with serve(Pooled(), EchoClient) as echo:
        _ = [note async for note in echo.repeat(Note())]
    assert events == ["entered", "called", "left"]
