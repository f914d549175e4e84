"""The life of a replica, told as histories."""

from __future__ import annotations

import pytest

from toolkit.launcher.lifecycle import TABLE, ProtocolError, State, Step, advance

S, E = State, Step
UP = (E.SPAWNED, E.DESCRIBED, E.PROGRESSED, E.PROGRESSED, E.WAITED, E.READIED)


def live(*history: Step) -> State:
    state = S.PENDING
    for step in history:
        state = advance(state, step)
    return state


@pytest.mark.parametrize(
    ("history", "end"),
    [
        ((E.SPAWNED,), S.STARTING),
        ((E.SPAWNED, E.DESCRIBED), S.LOADING),
        ((E.SPAWNED, E.DESCRIBED, E.READIED), S.READY),
        (UP, S.READY),
        ((*UP, E.DRAINED, E.EXITED), S.STOPPED),
        ((*UP, E.DRAINED, E.DRAINED, E.EXITED), S.STOPPED),
        ((*UP, E.DRAINED, E.DIED), S.FAILED),
        ((*UP, E.EXITED), S.FAILED),
        ((*UP, E.DIED), S.FAILED),
        ((E.SPAWNED, E.DESCRIBED, E.FAILED, E.DIED), S.FAILED),
        ((E.SPAWNED, E.DIED), S.FAILED),
        ((E.SPAWNED, E.FAILED, E.DRAINED, E.EXITED), S.FAILED),
        ((E.SPAWNED, E.DRAINED, E.DESCRIBED, E.PROGRESSED, E.WAITED, E.READIED, E.EXITED), S.STOPPED),
        ((E.DRAINED,), S.STOPPED),
        ((E.FAILED,), S.FAILED),
    ],
)
def test_a_history_ends_where_the_table_says(history: tuple[Step, ...], end: State) -> None:
    assert live(*history) is end


@pytest.mark.parametrize(
    "history",
    [
        (E.DESCRIBED,),
        (E.SPAWNED, E.READIED),
        (E.SPAWNED, E.PROGRESSED),
        (*UP, E.READIED),
        (*UP, E.DESCRIBED),
        (*UP, E.DRAINED, E.EXITED, E.READIED),
    ],
)
def test_a_step_without_a_place_breaks_the_protocol(history: tuple[Step, ...]) -> None:
    with pytest.raises(ProtocolError, match=f"{history[-1].value} while"):
        live(*history)


def test_every_state_has_a_way_out_but_the_ends() -> None:
    for state in State:
        ways = {after for (before, _), after in TABLE.items() if before is state and after is not state}
        assert bool(ways) is (state not in (S.STOPPED, S.FAILED))


def test_whatever_runs_can_be_told_to_stop_and_can_die() -> None:
    for state in (S.STARTING, S.LOADING, S.WAITING, S.READY, S.DRAINING):
        assert advance(state, E.DRAINED) is S.DRAINING
        assert advance(state, E.DIED) is S.FAILED
        assert advance(state, E.FAILED) is S.FAILED
