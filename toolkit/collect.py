"""What one process has measured, read at the moment that somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from toolkit.dispatch import Dispatcher
from toolkit.metrics import Calls, Sample, render, value_of
from toolkit.policy.replica import STATES
from toolkit.transport.pool import PoolTransport


class Collector:
    """The deployments of this process. Any thread may read it."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[Dispatcher, Mapping[str, PoolTransport]]] = {}

    def add(self, deployment: str, dispatcher: Dispatcher, handles: Mapping[str, PoolTransport]) -> None:
        """From now on a deployment, and its handles by their names, are among what is read."""
        self._sources[deployment] = (dispatcher, handles)

    def samples(self) -> list[Sample]:
        """All figures as they are now."""
        return [
            (name, (deployment, *labels), value)
            for deployment, (dispatcher, handles) in tuple(self._sources.items())
            for name, labels, value in (*_of_server(dispatcher), *_of_handles(handles))
        ]

    def text(self) -> str:
        """The same for Prometheus."""
        return render([({}, self.samples())])


def _of_server(dispatcher: Dispatcher) -> Iterator[Sample]:
    admission, batchers = dispatcher.door.admission, dispatcher.batchers
    yield "toolkit_server_inflight", (), dispatcher.in_flight
    yield "toolkit_server_queued", (), admission.queued + sum(each.queued for each in batchers.values())
    doors = [each.admission for each in dispatcher.doors]
    full, hopeless = sum(each.full for each in doors), sum(each.hopeless + each.expired for each in doors)
    late = sum(each.figures.late for each in batchers.values())
    yield "toolkit_server_rejected_total", ("limit",), full
    yield "toolkit_server_rejected_total", ("deadline",), hopeless + dispatcher.expired + late
    for path, calls in dispatcher.calls.items():
        method = path[1:]
        yield "grpc_server_call_started_total", (method,), calls.started
        yield from _of_ended("grpc_server_call_duration_seconds", (method,), calls)
        batcher = batchers.get(path)
        if batcher is None:
            yield "toolkit_server_queue_seconds", (method,), _waits(calls)
        else:
            yield "toolkit_server_queue_seconds", (method,), value_of(batcher.waited)
            yield "toolkit_batch_size", (method,), value_of(batcher.sizes)
            yield "toolkit_batch_compute_seconds", (method,), value_of(batcher.computed)


def _of_handles(handles: Mapping[str, PoolTransport]) -> Iterator[Sample]:
    for name, handle in handles.items():
        labels = (name, handle.name)
        hedges = sum(each.sent for each in handle.hedges)
        yield "toolkit_client_retries_total", labels, handle.budget.spent - hedges
        yield "toolkit_client_hedges_total", labels, hedges
        yield "toolkit_client_hedges_won_total", labels, sum(each.won for each in handle.hedges)
        yield "toolkit_client_ejections_total", labels, handle.ejections
        seen = Counter(replica.state for replica in handle.replicas)
        yield from (("toolkit_client_replicas", (*labels, state), seen[state]) for state in STATES)
        for path, attempts in tuple(handle.attempted.items()):
            yield "grpc_client_attempt_started_total", (*labels, path[1:]), attempts.started
            yield from _of_ended("grpc_client_attempt_duration_seconds", (*labels, path[1:]), attempts)


def _of_ended(name: str, labels: tuple[str, ...], calls: Calls) -> Iterator[Sample]:
    for code, seconds in tuple(calls.ended.items()):
        yield name, (*labels, code.name), value_of(seconds)


def _waits(calls: Calls) -> tuple[list[int], float]:
    """Those that did not have to wait are in the first bucket."""
    first, *others = calls.waited.counts
    return [first + calls.at_once, *others], calls.waited.sum
