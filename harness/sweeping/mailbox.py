"""The worker's end of the pipe. Must not import torch."""

import os
import signal
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import assert_never

from harness.sweeping.messages import Check, News, Order, Prune, Stop, Train
from harness.training.stop import StopRequest

ORPHAN_SECONDS = 5.0
"""Seconds that a worker whose driver is gone may take to keep its checkpoints."""


class Mailbox:
    """The worker's end of the pipe: orders are read by a thread, so that none waits for a step to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tasks: deque[Train | Check] = deque()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.pruned: dict[str, str] = {}
        self.stop = StopRequest()
        threading.Thread(target=self._listen, name="mailbox", daemon=True).start()

    def send(self, news: News) -> None:
        """Tell the driver; a driver that is gone hears nothing."""
        with self._sending:
            try:
                self._connection.send(news)
            except OSError:
                self._ask_to_stop()

    def wait(self) -> Train | Check | None:
        """Return the next task, waiting for it; None when there will be none."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._tasks or self.stop, timeout=0.5):
                pass  # a signal sets `stop` without a word
            return None if self.stop else self._tasks.popleft()

    def next_of(self, cohort: str) -> Train | None:
        """Return the first waiting run of a cohort, if there is one now."""
        with self._changed:
            for task in self._tasks:
                if isinstance(task, Train) and task.cohort == cohort:
                    self._tasks.remove(task)
                    return task
        return None

    def _listen(self) -> None:
        while True:
            try:
                order: Order = self._connection.recv()
            except (EOFError, OSError):
                self._ask_to_stop()
                threading.Timer(ORPHAN_SECONDS, lambda: os._exit(1)).start()
                return
            match order:
                case Train() | Check():
                    with self._changed:
                        self._tasks.append(order)
                        self._changed.notify_all()
                case Prune():
                    self.pruned[order.run_id] = order.reason
                case Stop():
                    self._ask_to_stop()
                case unknown:
                    assert_never(unknown)

    def _ask_to_stop(self) -> None:
        with self._changed:
            self.stop.signal = self.stop.signal or signal.SIGTERM
            self._changed.notify_all()
