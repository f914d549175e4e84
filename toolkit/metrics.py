"""What is measured, under which names, and how that reads as Prometheus wants it. The standard library alone: launchers join what
their replicas say.

The names of calls and attempts are gRPC's own (https://github.com/grpc/proposal/blob/master/A66-otel-stats.md), the others begin
with `toolkit_`. No label takes what a caller sends: only names of the graph and of contracts, and codes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal

from toolkit.errors import Code, ServiceError

SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, and what stands under it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    """After `deployment`, which all have. `toolkit up` adds `replica`, as `toolkit ps` names it, to what a replica says."""
    what: str
    bounds: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets."""


_OF_CALL: Final = ("grpc_method",)
_OF_HANDLE: Final = ("handle", "grpc_target")
METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(
            "grpc_server_call_started_total", "counter", _OF_CALL, "Calls that came, those included that were refused."
        ),
        Metric(
            "grpc_server_call_duration_seconds",
            "histogram",
            (*_OF_CALL, "grpc_status"),
            "What calls took that have ended, the wait for a turn included.",
            SECONDS,
        ),
        Metric(
            "toolkit_server_inflight",
            "gauge",
            (),
            "Calls that are being handled, those included that wait for a turn or for a batch.",
        ),
        Metric("toolkit_server_queued", "gauge", (), "Calls that wait for a turn or for a batch."),
        Metric(
            "toolkit_server_queue_seconds",
            "histogram",
            _OF_CALL,
            "What calls have waited for their turn, or for their batch to start.",
            SECONDS,
        ),
        Metric(
            "toolkit_server_rejected_total",
            "counter",
            ("why",),
            "Calls that no handler saw: as many as may be were there (limit), or their deadline was too near (deadline).",
        ),
        Metric("toolkit_batch_size", "histogram", _OF_CALL, "Requests of a batch that was answered.", SIZES),
        Metric("toolkit_batch_compute_seconds", "histogram", _OF_CALL, "What the handler took for a batch.", SECONDS),
        Metric(
            "grpc_client_attempt_started_total",
            "counter",
            (*_OF_HANDLE, *_OF_CALL),
            "Attempts at calls of a handle; a retry or a hedge is another attempt.",
        ),
        Metric(
            "grpc_client_attempt_duration_seconds",
            "histogram",
            (*_OF_HANDLE, *_OF_CALL, "grpc_status"),
            "What attempts took that have ended.",
            SECONDS,
        ),
        Metric(
            "toolkit_client_retries_total", "counter", _OF_HANDLE, "Attempts that were made because one had failed."
        ),
        Metric("toolkit_client_hedges_total", "counter", _OF_HANDLE, "Attempts that were made because one was slow."),
        Metric("toolkit_client_hedges_won_total", "counter", _OF_HANDLE, "Hedges that were answered first."),
        Metric(
            "toolkit_client_ejections_total",
            "counter",
            _OF_HANDLE,
            "How often a replica was left out because it failed.",
        ),
        Metric(
            "toolkit_client_replicas",
            "gauge",
            (*_OF_HANDLE, "state"),
            "The replicas of a deployment, as this caller sees them.",
        ),
        Metric("toolkit_replicas", "gauge", ("state",), "Replicas by their state, as toolkit ps shows it."),
        Metric(
            "toolkit_replica_starts_total",
            "counter",
            (),
            "Replicas that were started: at first, to mend, replace and scale.",
        ),
    )
}
"""All that there is, by name."""


class Histogram:
    """How many values there were, by size."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, the last without an end."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Calls:
    """What became of the calls of one method."""

    __slots__ = ("at_once", "ended", "started", "waited")

    def __init__(self) -> None:
        self.started = 0
        self.at_once = 0
        """Those that had their turn without a wait."""
        self.waited = Histogram(SECONDS)
        """What the others waited that had their turn."""
        self.ended: dict[Code, Histogram] = {}
        """Code → what the calls took."""

    def counted(self) -> _Counted:
        """`with calls.counted():` around one call, from its start to its end, however it ends."""
        return _Counted(self)

    def end(self, code: Code, seconds: float) -> None:
        found = self.ended.get(code)
        if found is None:
            found = self.ended[code] = Histogram(SECONDS)
        found.counts[bisect_left(SECONDS, seconds)] += 1  # `add`, without its call: every call comes by here, twice
        found.sum += seconds


class _Counted:
    """What ends by something else than a ServiceError was cancelled."""

    __slots__ = ("_calls", "_start")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        self._calls.started += 1
        self._start = time.monotonic()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code = Code.OK if error is None else error.code if isinstance(error, ServiceError) else Code.CANCELLED
        self._calls.end(code, time.monotonic() - self._start)


Value = float | tuple[Sequence[int], float]
"""A number; of a histogram the counts of its buckets, and the sum."""
Sample = tuple[str, tuple[str, ...], Value]
"""Name of a metric, values of its labels, the deployment's name first, and what is measured."""


def value_of(histogram: Histogram) -> Value:
    return tuple(histogram.counts), histogram.sum


def render(said: Iterable[tuple[Mapping[str, str], Iterable[Sample]]]) -> str:
    """Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/) of samples and the labels that
    they have beside their own.
    """
    lines: dict[str, list[str]] = {}
    for common, samples in said:
        for name, values, value in samples:
            metric = METRICS[name]
            labels = {"deployment": values[0], **common, **dict(zip(metric.labels, values[1:], strict=True))}
            lines.setdefault(name, []).extend(_lines(metric, labels, value))
    found = []
    for metric in METRICS.values():
        if metric.name in lines:
            found += [f"# HELP {metric.name} {metric.what}", f"# TYPE {metric.name} {metric.kind}", *lines[metric.name]]
    return "".join(f"{line}\n" for line in found)


def _lines(metric: Metric, labels: Mapping[str, str], value: Value) -> Iterable[str]:
    own = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
    if not isinstance(value, tuple):
        return (f"{metric.name}{{{own}}} {value}",)
    counts, total = value
    ends = (*(f"{bound:g}" for bound in metric.bounds), "+Inf")
    buckets = [
        f'{metric.name}_bucket{{{own},le="{end}"}} {count}' for end, count in zip(ends, accumulate(counts), strict=True)
    ]
    return (*buckets, f"{metric.name}_sum{{{own}}} {total}", f"{metric.name}_count{{{own}}} {sum(counts)}")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def read_samples(said: Any) -> tuple[Sample, ...]:
    """Samples that have come as JSON. Raises ValueError for what are none."""
    if not isinstance(said, list):
        raise ValueError("no list of samples")
    return tuple(map(_read_sample, said))


def _read_sample(said: Any) -> Sample:
    match said:
        case [str(name), [*labels], value] if name in METRICS and all(isinstance(label, str) for label in labels):
            metric = METRICS[name]
            if len(labels) == 1 + len(metric.labels):
                return name, tuple(labels), _read_value(metric, value)
    raise ValueError(f"no sample: {said!r:.80}")


def _read_value(metric: Metric, said: Any) -> Value:
    match said:
        case [[*counts], int() | float() as total] if len(counts) == len(metric.bounds) + 1 and metric.bounds:
            if all(type(count) is int for count in counts):
                return tuple(counts), total
        case int() | float() if not metric.bounds:
            return said
    raise ValueError(f"no value of {metric.name}: {said!r:.80}")
