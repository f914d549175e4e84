"""`Door`: where calls wait for their turn. The event loop's side of `policy.admission`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from toolkit.deadline import Deadline
from toolkit.errors import Code, ServiceError
from toolkit.policy.admission import ADMIT, Admission, AdmissionOptions, Admit, Reason, Refuse, Ticket
from toolkit.tasks import time_limit


class Door:
    """Lets so many calls in at once, makes some wait, and refuses the rest at once. Each `enter` that returns is followed
    by one `leave`.
    """

    def __init__(self, options: AdmissionOptions, name: str) -> None:
        self.admission = Admission(options)
        self._name = name

    async def enter(self, deadline: Deadline | None, kind: str = "") -> None:
        """Return when it is the call's turn. Raises ServiceError when there is none to be had."""
        decision = self.enter_nowait(deadline, kind)
        if decision is not ADMIT:
            await self.wait(decision, deadline)

    def enter_nowait(self, deadline: Deadline | None, kind: str = "") -> Admit | Ticket | Refuse:
        """`enter` in two steps, for the path of every call: what is not ADMIT must be waited for."""
        return self.admission.enter(None if deadline is None else deadline.remaining(), kind)

    def leave(self, seconds: float | None, *, is_late: bool = False, kind: str = "") -> None:
        """The call is over; `seconds` are what it took, None where it was cut short; `is_late`: by its deadline."""
        _wake(self.admission.release(seconds, is_late=is_late, kind=kind))

    async def wait(self, decision: Admit | Ticket | Refuse, deadline: Deadline | None) -> None:
        """The second step of `enter_nowait`."""
        if isinstance(decision, Ticket):
            decision.waiter = asyncio.get_running_loop().create_future()
            try:
                if deadline is None:
                    await decision.waiter
                else:
                    with time_limit(deadline.remaining()):
                        await decision.waiter
            except TimeoutError:
                _wake(self.admission.leave(decision))
                raise ServiceError(
                    Code.DEADLINE_EXCEEDED, f"the deadline passed in the queue of {self._name}"
                ) from None
            except asyncio.CancelledError:
                _wake(self.admission.leave(decision))
                raise
            decision = decision.outcome or ADMIT
        if isinstance(decision, Refuse):
            raise self._refusal(decision)

    def _refusal(self, refuse: Refuse) -> ServiceError:
        if refuse.reason is Reason.HOPELESS:
            message = f"{self._name} is too busy to answer before the deadline"
        else:
            message = f"{self._name} is busy: {self.admission.running} calls run and {self.admission.queued} wait"
        pushback = -1.0 if refuse.retry_after is None else refuse.retry_after
        return ServiceError(Code.RESOURCE_EXHAUSTED, message, retry_after=pushback)


def _wake(tickets: Iterable[Ticket]) -> None:
    for ticket in tickets:
        if ticket.waiter is not None and not ticket.waiter.done():
            ticket.waiter.set_result(None)
