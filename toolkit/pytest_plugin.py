"""Fixtures over `toolkit.testing`, which end what a test has started. They need pytest-asyncio; in `conftest.py`:

`pytest_plugins = ["toolkit.pytest_plugin"]`
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

import pytest_asyncio

from toolkit.client import Client
from toolkit.service import Service
from toolkit.testing import graph_in_process, graph_in_processes, serve

C = TypeVar("C", bound=Client)


class Serving(Protocol):
    async def __call__(
        self, service: Service, client: type[C], *, handles: Mapping[str, Service | Client] | None = None
    ) -> C:
        """As `toolkit.testing.serve`."""
        ...


class InProcess(Protocol):
    async def __call__(
        self, graph: str | os.PathLike[str], client: type[C], *, instead: Mapping[str, Service] | None = None
    ) -> C:
        """As `toolkit.testing.graph_in_process`."""
        ...


class InProcesses(Protocol):
    async def __call__(self, graph: str | os.PathLike[str], client: type[C], *options: str) -> C:
        """As `toolkit.testing.graph_in_processes`."""
        ...


@pytest_asyncio.fixture
async def serving() -> AsyncIterator[Serving]:
    """`scoring = await serving(Scoring(), ScoringClient)`: a service and a client of it, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(
            service: Service, client: type[C], *, handles: Mapping[str, Service | Client] | None = None
        ) -> C:
            return await stack.enter_async_context(serve(service, client, handles=handles))

        yield start


@pytest_asyncio.fixture
async def in_process() -> AsyncIterator[InProcess]:
    """`graph = await in_process("graph.yaml", GraphClient, instead={…})`: a whole graph in this process."""
    async with AsyncExitStack() as stack:

        async def start(
            graph: str | os.PathLike[str], client: type[C], *, instead: Mapping[str, Service] | None = None
        ) -> C:
            return await stack.enter_async_context(graph_in_process(graph, client, instead=instead))

        yield start


@pytest_asyncio.fixture
async def in_processes() -> AsyncIterator[InProcesses]:
    """`graph = await in_processes("graph.yaml", GraphClient, "--set", "a.replicas=2")`: a graph as `toolkit up` runs it."""
    async with AsyncExitStack() as stack:

        async def start(graph: str | os.PathLike[str], client: type[C], *options: str) -> C:
            return await stack.enter_async_context(graph_in_processes(graph, client, *options))

        yield start
