"""What can happen to the supervisor. A replica says the first nine itself, as JSON lines on its control socket:

    {"event": "described", "contract": "services.scoring.v1.Scoring", "handles": {"gpt2": "services.text.v1.Text"},
     "batched": {"score": "Score"}, "companions": []}                            these are described alike, in their order
    {"event": "progress", "phase": "read weights", "done": 3, "total": 10}      total is null where nobody knows it
    {"event": "waiting", "for": ["gpt2"]}                                        loaded; its handles do not answer yet
    {"event": "ready", "addresses": ["127.0.0.1:50051", "unix:/…/graph.0.sock"]}
    {"event": "load", "running": 3, "queued": 0, "wait": 0.0}                    every second, once it is ready
    {"event": "measured", "samples": [["toolkit_server_queued", ["gpt2"], 3]]}   where it is asked to: toolkit/metrics.py
    {"event": "loaded", "files": ["/…/service.py"]}                              where it is asked to report them
    {"event": "failed", "message": "one sentence with the cure"}                 then it exits
    {"event": "draining"}

The other way travel, whenever replicas come or go, {"addresses": {"gpt2": ["unix:/…/gpt2.sock"]}} to those who call them, and
{"replaced": true} to one whose ports another has by now. When the launcher's end closes, the replica stops at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from toolkit.launcher.lines import parse_object
from toolkit.launcher.sizes import show_size
from toolkit.metrics import Sample, read_samples

MAX_LINE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Described:
    replica: str
    contract: str
    handles: Mapping[str, str]
    """Handle → the contract that it expects."""
    batched: Mapping[str, str] = field(default_factory=dict)
    """Its batched methods: name in the class → name in the .proto."""
    companions: tuple[Described, ...] = ()
    """The others in its process, in the order of `ReplicaSpec.companions`."""


@dataclass(frozen=True, slots=True)
class Progress:
    replica: str
    phase: str
    done: int | float
    total: int | float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    replica: str
    handles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    replica: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What it has to do. Its event loop turns: that is news too."""

    replica: str
    running: int | float
    queued: int | float
    wait: int | float
    """Seconds that a new call would wait for its turn."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What it has measured since its start."""

    replica: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The files of the project that it is made of."""

    replica: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    replica: str
    message: str


@dataclass(frozen=True, slots=True)
class Draining:
    replica: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """It is ended for what it took; `Exited` follows."""

    replica: str
    used: int | None = None
    """Bytes, where they were counted."""
    limit: int | None = None
    """Bytes, `resources.memory`. None: nobody set one, and the kernel ended it."""

    @property
    def message(self) -> str:
        if self.limit is None:
            how = "the kernel ended it, for this machine or its container has none left"
            return (
                f"out of memory: {how}; run less here, or set resources.memory, so that it is known who takes too much"
            )
        used = "" if self.used is None else f"used {show_size(self.used)} of "
        cure = "raise it, or lower what the model takes: its batches, or traffic.max_concurrency"
        return f"out of memory: {used}resources.memory {show_size(self.limit)}; {cure}"


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone, and its whole group with it."""

    replica: str
    status: int
    """Exit status; negative is the number of the signal that ended it."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a replica printed."""

    replica: str
    text: str
    is_transient: bool = False
    r"""It ended in `\r`: the next one overwrites it, as a progress bar does."""


@dataclass(frozen=True, slots=True)
class Signalled:
    """The launcher itself got a signal."""

    number: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody at a terminal wants something of the graph."""

    client: int
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Changed:
    """Files of the project were written."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Noted:
    """Something is wrong with the files of the project."""

    complaint: str


Said = Described | Progress | Waiting | Ready | Load | Measured | Loaded | Failed | Draining
"""What a replica tells of itself."""
Event = Said | OutOfMemory | Exited | Output | Signalled | Asked | Changed | Noted


def parse_event(replica: str, line: bytes) -> Said:
    """One line of a control socket. Raises ValueError saying what is wrong with it."""
    said = parse_object(line)
    if said is None:
        raise ValueError(f"not a JSON object: {line[:80]!r}")
    match said.get("event"):
        case "described":
            companions = _get({"companions": [], **said}, "companions", list)
            return replace(
                _described(replica, said), companions=tuple(_companion(replica, each) for each in companions)
            )
        case "progress":
            done = _number(said.get("done", 0))
            return Progress(replica, _get(said, "phase", str), 0 if done is None else done, _number(said.get("total")))
        case "waiting":
            return Waiting(replica, _texts(_get(said, "for", list)))
        case "ready":
            return Ready(replica, _texts(_get(said, "addresses", list)))
        case "load":
            return Load(replica, *(_number(said.get(key)) or 0 for key in ("running", "queued", "wait")))
        case "measured":
            return Measured(replica, read_samples(said.get("samples")))
        case "loaded":
            return Loaded(replica, _texts(_get(said, "files", list)))
        case "failed":
            return Failed(replica, _get(said, "message", str))
        case "draining":
            return Draining(replica)
    raise ValueError(f"no such event: {line[:80]!r}")


def _described(replica: str, said: Mapping[str, Any]) -> Described:
    handles, batched = (_texts_by_name(_get({"batched": {}, **said}, key, dict)) for key in ("handles", "batched"))
    return Described(replica, _get(said, "contract", str), handles, batched)


def _companion(replica: str, said: Any) -> Described:
    if not isinstance(said, dict):
        raise ValueError("described.companions holds something that is no object")
    return _described(replica, {**said, "event": "described"})


class EventReader:
    """The bytes of a control socket → events. What breaks the protocol fails the replica, once; the rest is not read."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._rest = b""
        self._is_broken = False

    def feed(self, chunk: bytes) -> Iterator[Said]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not self._is_broken:
                yield self._read(line)
        if len(self._rest) > MAX_LINE_BYTES:
            if not self._is_broken:
                yield self._read(self._rest)
            self._rest = b""

    def finish(self) -> Iterator[Said]:
        """Half a line at the end says nothing."""
        return iter(())

    def _read(self, line: bytes) -> Said:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
            return parse_event(self._replica, line)
        except ValueError as error:
            self._is_broken = True
            return Failed(self._replica, f"broke the protocol of its control socket: {error}")


T = TypeVar("T")


def _get(said: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = said.get(key)
    if not isinstance(value, kind):
        raise ValueError(f"{said['event']}.{key} is no {kind.__name__}")
    return value


def _texts(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("a list holds something that is not text")
    return tuple(values)


def _texts_by_name(values: dict[str, Any]) -> dict[str, str]:
    return dict(zip(values, _texts(list(values.values())), strict=True))


def _number(value: Any) -> int | float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("progress counts in numbers")
    return value
