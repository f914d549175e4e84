"""Which replica is left out because it fails more than the others do, and for how long.

After https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md, with one difference: where all fail alike
it is the request, or something below, and leaving replicas out would only lose capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from toolkit.errors import Code, ServiceError
from toolkit.policy.replica import Replica

FAULTS: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS})


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlierOptions:
    in_a_row: int = 5
    """Failures without a success between them that make a suspect, whatever went before."""
    share: float = 0.3
    """Part of its latest calls whose failure makes a suspect, from `min_calls` on."""
    min_calls: int = 10
    eject_for: float = 1.0
    """Seconds that an outlier is left out; twice as long each time that it was no better."""
    max_eject_for: float = 8.0
    """Seconds that it is left out at most, so that one that has healed is back within ten."""
    max_ejected: float = 0.5
    """Part of the replicas that may be left out together; one in any case, and never the last."""
    trial: int = 3
    """Calls, one at a time, that must go well after an ejection."""


def is_fault(error: ServiceError) -> bool:
    """Whether an error, as it came in, speaks against the replica: not where it comes from deeper, or is the request's."""
    return error.code in FAULTS and not error.path


def is_outlier(replica: Replica, others: Iterable[Replica], options: OutlierOptions) -> bool:
    """Whether it fails, and more than twice as often as the others."""
    calls = replica.good + replica.bad
    is_often = calls >= options.min_calls and replica.bad >= options.share * calls
    if not is_often and replica.row < options.in_a_row:
        return False
    bad = good = 0.0
    for other in others:
        bad += other.bad
        good += other.good
    return 2 * bad * calls <= replica.bad * (bad + good)


def may_eject(replica: Replica, present: Sequence[Replica], options: OutlierOptions) -> bool:
    """Whether enough others of those present stay."""
    ejected = sum(each.ejected_until is not None for each in present)
    return ejected < max(1, int(len(present) * options.max_ejected)) and any(
        each.is_open for each in present if each is not replica
    )


def eject(replica: Replica, now: float, options: OutlierOptions) -> None:
    """Leave it out, longer each time."""
    until = now + min(options.eject_for * 2**replica.ejections, options.max_eject_for)
    replica.eject(until, until + options.max_eject_for)
