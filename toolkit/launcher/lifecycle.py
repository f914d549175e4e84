"""The life of one replica, as a table. Pure: nothing happens here, `advance` only says what state comes next."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """Where a replica is. `STOPPED` and `FAILED` are the ends."""

    PENDING = "pending"
    STARTING = "starting"
    """Its process runs and has not said what it is."""
    LOADING = "loading"
    """Its class is imported; the model loads."""
    WAITING = "waiting"
    """Loaded; its handles do not answer yet."""
    READY = "ready"
    HUNG = "hung"
    """Its event loop does not turn any more."""
    DRAINING = "draining"
    """It takes no new calls, or was told to stop before it took any."""
    STOPPED = "stopped"
    FAILED = "failed"


class Step(Enum):
    """What moves it."""

    SPAWNED = "spawned"
    DESCRIBED = "described"
    PROGRESSED = "progressed"
    WAITED = "waited"
    READIED = "readied"
    FAILED = "failed"
    HUNG = "hung"
    """It has said nothing for too long."""
    DRAINED = "drained"
    """It said so, or was asked to."""
    EXITED = "exited"
    """As it should: status 0, or by the signal that we sent."""
    DIED = "died"
    """Any other way."""


class ProtocolError(ValueError):
    """A step that has no place in the state where it came."""


_S, _E = State, Step
_ALIVE = (_S.STARTING, _S.LOADING, _S.WAITING, _S.READY, _S.HUNG, _S.DRAINING)

TABLE: Mapping[tuple[State, Step], State] = {
    (_S.PENDING, _E.SPAWNED): _S.STARTING,
    (_S.PENDING, _E.FAILED): _S.FAILED,
    (_S.PENDING, _E.DRAINED): _S.STOPPED,
    (_S.STARTING, _E.DESCRIBED): _S.LOADING,
    (_S.LOADING, _E.PROGRESSED): _S.LOADING,
    (_S.LOADING, _E.WAITED): _S.WAITING,
    (_S.LOADING, _E.READIED): _S.READY,
    (_S.WAITING, _E.WAITED): _S.WAITING,
    (_S.WAITING, _E.PROGRESSED): _S.WAITING,
    (_S.WAITING, _E.READIED): _S.READY,
    (_S.READY, _E.HUNG): _S.HUNG,
    # Asked to stop, it may still finish saying what it was about to say.
    **{(_S.DRAINING, step): _S.DRAINING for step in (_E.DESCRIBED, _E.PROGRESSED, _E.WAITED, _E.READIED)},
    **{(state, _E.DRAINED): _S.DRAINING for state in _ALIVE},
    **{(state, _E.FAILED): _S.FAILED for state in _ALIVE},
    # Nobody asked it to go: an exit with status 0 is a failure too.
    **{(state, _E.EXITED): _S.FAILED for state in _ALIVE},
    **{(state, _E.DIED): _S.FAILED for state in _ALIVE},
    (_S.DRAINING, _E.EXITED): _S.STOPPED,
    **{(_S.FAILED, step): _S.FAILED for step in Step},
}


def advance(state: State, step: Step) -> State:
    """The state after `step`. Raises ProtocolError where the table has no such row."""
    try:
        return TABLE[state, step]
    except KeyError:
        raise ProtocolError(f"{step.value} while {state.value}") from None
