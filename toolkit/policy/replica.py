"""What a caller knows of one replica: how busy it is, and how it has fared lately."""

from __future__ import annotations

from math import inf
from typing import Final

ONE_AT_A_TIME: Final = 1_000_000
"""Weight of a call on trial: an idle replica may get one, a busy one does not get a second."""

STATES: Final = ("ready", "trial", "silent", "ejected", "unready", "leaving")


class Replica:
    """One address of a deployment. Everybody may read it; only its balancer writes."""

    __slots__ = ("address", "bad", "ejected_until", "ejections", "forgiven_at", "good", "heard_at", "is_leaving",
                 "is_ready", "is_silent", "outstanding", "picked", "row", "streams", "trial", "weight")  # fmt: skip

    def __init__(self, address: str) -> None:
        self.address = address
        self.outstanding = 0
        self.streams = 0
        """Of these, streams that may rightly be silent."""
        self.picked = 0
        """Calls that it got in all."""
        self.is_leaving = False
        self.renew(is_ready=False)

    def renew(self, *, is_ready: bool) -> None:
        """Forget how it fared: another process may answer there now."""
        self.is_ready = is_ready
        self.is_silent = False
        self.heard_at = 0.0
        self.ejections = 0
        self.ejected_until: float | None = None
        self.forgiven_at = inf
        self._start_over()

    def eject(self, until: float, forgiven_at: float) -> None:
        """Leave it out; another ejection before `forgiven_at` is a repeated one."""
        self._start_over()
        self.ejections += 1
        self.ejected_until = until
        self.forgiven_at = forgiven_at

    def readmit(self, trial: int) -> None:
        """Let it try `trial` calls, one at a time."""
        self.ejected_until = None
        self.trial = trial
        self.weight = ONE_AT_A_TIME

    def pass_trial(self) -> None:
        """One more of its calls on trial went well."""
        self.trial -= 1
        if not self.trial:
            self.weight = 1

    def fade(self, part: float) -> None:
        """Count what is past as `part` of it."""
        self.good *= part
        self.bad *= part

    def forgive(self) -> None:
        self.ejections = 0
        self.forgiven_at = inf

    @property
    def is_present(self) -> bool:
        """It could be called, if need be."""
        return self.is_ready and not self.is_leaving

    @property
    def is_open(self) -> bool:
        """Nothing speaks against calling it."""
        return self.is_present and not self.is_silent and self.ejected_until is None

    @property
    def state(self) -> str:
        """One word for those who look on, of `STATES`."""
        if self.is_leaving:
            return "leaving"
        if not self.is_ready:
            return "unready"
        if self.ejected_until is not None:
            return "ejected"
        if self.is_silent:
            return "silent"
        return "trial" if self.trial else "ready"

    def _start_over(self) -> None:
        self.trial = self.row = 0
        self.weight = 1
        self.good = self.bad = 0.0
