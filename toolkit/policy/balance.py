"""Which replica gets a call: the one with fewer calls outstanding of two taken at random, among those that are well.

Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001. A new replica is one of the two for
twice its share of the calls, so that it gets no more than that, however idle it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import random
from typing import Final

from toolkit.deadline import Clock
from toolkit.policy.outlier import OutlierOptions, eject, is_outlier, may_eject
from toolkit.policy.replica import Replica

LOOK_EVERY: Final = 0.25
"""Seconds between looks at what time changes: silence, ejections that end, failures long past."""
HALF_LIFE: Final = 1.0
"""Seconds after which an outcome counts half."""
LATENCY_HALF_LIFE: Final = 30.0
"""Seconds after which the slowest reply counts half: models take long, but not on every call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceOptions:
    silence: float = 1.0
    """Seconds without a reply, while others reply, after which a replica is passed over; at least twice the slowest reply."""
    outlier: OutlierOptions = field(default_factory=OutlierOptions)


DEFAULT_OPTIONS: Final = BalanceOptions()


class Balancer:
    """The replicas of one deployment, as one caller sees them. A replica gets calls once it is said to be ready."""

    def __init__(
        self,
        options: BalanceOptions = DEFAULT_OPTIONS,
        *,
        clock: Clock = time.monotonic,
        random: Callable[[], float] = random,
    ) -> None:
        self.ejections = 0
        """How often a replica was left out because it failed."""
        self._options = options
        self._clock = clock
        self._random = random
        self._replicas: dict[str, Replica] = {}
        self._usable: Sequence[Replica] = ()
        self._slowest = 0.0
        self._heard_at = self._looked_at = clock()
        self._look_at = self._looked_at + LOOK_EVERY

    @property
    def replicas(self) -> Sequence[Replica]:
        """Those that leave included, until their last call has ended."""
        return tuple(self._replicas.values())

    def set_replicas(self, addresses: Iterable[str]) -> Sequence[Replica]:
        """The addresses as they are now. Returns those that are gone and idle: their connections can be closed."""
        wanted = dict.fromkeys(addresses)
        for address in wanted:
            self._replicas.setdefault(address, Replica(address)).is_leaving = False
        for replica in self.replicas:
            replica.is_leaving = replica.address not in wanted
        gone = [replica for replica in self.replicas if replica.is_leaving and not replica.outstanding]
        for replica in gone:
            del self._replicas[replica.address]
        self._refresh()
        return gone

    def set_ready(self, address: str, is_ready: bool) -> None:
        """What its health says, or its connection: a keepalive without an answer makes it unready at once."""
        replica = self._replicas.get(address)
        if replica is not None and replica.is_ready != is_ready:
            replica.renew(is_ready=is_ready)
            replica.heard_at = self._clock()
            self._refresh()

    def pick(self, exclude: Collection[Replica] = ()) -> Replica | None:
        """The replica for a call, which counts as outstanding until `ended`; None: there is none, or all are excluded."""
        now = self._clock()
        if now >= self._look_at:
            self._look(now)
        usable = self._usable if not exclude else [each for each in self._usable if each not in exclude]
        count = len(usable)
        if not count:
            return None
        found = usable[0]
        if count > 1:
            first = int(self._random() * count)
            found, other = usable[first], usable[first - 1 - int(self._random() * (count - 1))]
            if other.outstanding * other.weight < found.outstanding * found.weight:
                found = other
        if found.outstanding == found.streams:
            found.heard_at = now
        found.outstanding += 1
        found.picked += 1
        return found

    def began(self, replica: Replica) -> None:
        """A picked call is a stream that may have nothing to say for long: it has said something, or waits for its caller."""
        replica.streams += 1

    def ended(self, replica: Replica, ok: bool | None, latency: float = 0.0, *, is_stream: bool = False) -> bool:
        """A picked call has ended. True: the replica has left, and this was its last; close its connection.

        `ok` is False for what `is_fault` says, and for an attempt that its hedge overtook; None where nothing was learned,
        as when the caller gave up; else True. `latency` are the seconds to the reply, where there is one and one only.
        `is_stream`: it had begun as one.
        """
        replica.outstanding -= 1
        replica.streams -= is_stream
        if ok:
            replica.good += 1
            replica.row = 0
            if latency > self._slowest:
                self._slowest = latency
            self.heard(replica)
            if replica.trial:
                replica.pass_trial()
        elif ok is not None:
            self._failed(replica)
        if replica.is_leaving and not replica.outstanding:
            return self._replicas.pop(replica.address, None) is not None
        return False

    def heard(self, replica: Replica) -> None:
        """It has replied; call it for each item of a stream too."""
        self._heard_at = replica.heard_at = self._clock()
        if replica.is_silent:
            replica.is_silent = False
            self._refresh()

    def _failed(self, replica: Replica) -> None:
        if replica.ejected_until is not None or not replica.is_present:
            return
        replica.bad += 1
        replica.row += 1
        options = self._options.outlier
        others = [each for each in self._replicas.values() if each is not replica]
        if (replica.trial or is_outlier(replica, others, options)) and may_eject(replica, self._present(), options):
            eject(replica, self._clock(), options)
            self.ejections += 1
            self._refresh()

    def _look(self, now: float) -> None:
        elapsed = now - self._looked_at
        self._looked_at, self._look_at = now, now + LOOK_EVERY
        self._slowest *= 0.5 ** (elapsed / LATENCY_HALF_LIFE)
        patience = max(self._options.silence, 2 * self._slowest)
        for replica in self._replicas.values():
            replica.fade(0.5 ** (elapsed / HALF_LIFE))
            silence = now - replica.heard_at if replica.outstanding > replica.streams else 0.0
            replica.is_silent = silence > patience and now - self._heard_at <= patience
            if replica.ejected_until is not None and now >= replica.ejected_until:
                replica.readmit(self._options.outlier.trial)
            if now >= replica.forgiven_at:
                replica.forgive()
        self._refresh()

    def _present(self) -> Sequence[Replica]:
        return [each for each in self._replicas.values() if each.is_present]

    def _refresh(self) -> None:
        present = self._present()
        self._usable = [each for each in present if each.is_open] or present
