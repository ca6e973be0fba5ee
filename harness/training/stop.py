"""A polite end: the first SIGINT, SIGTERM or SIGHUP asks for a checkpoint and a stop.

A second SIGINT is final.
"""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler or `kill`, and a terminal that was closed or a connection that was lost."""


def leave_terminal() -> None:
    """Let what is still printed go nowhere: writing to a terminal that was closed would raise."""
    for descriptor in (0, 1, 2):
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        except OSError:
            continue


class StopRequest:
    """Whether the loop should stop after the step in progress."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        self.signal = signal.Signals(number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a StopRequest inside this context (main thread only).

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in STOPS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, request._ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
