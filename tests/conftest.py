"""What all tests want of the process that they run in."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Who starts the tests in the background of a script, or with nohup, has Ctrl-C ignored, and so would have whatever they
    start: those that press it would wait for ever.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
