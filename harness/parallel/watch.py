"""A thread that ends this rank when another one, or torchrun, is gone: a call into NCCL would wait for ever.

Gloo notices a closed connection by itself; then the rank ends in order, before this has waited long enough.
"""

import os
import threading
from collections.abc import Sequence

import psutil

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0


class Watch(threading.Thread):
    """Looks after other processes until `end`."""

    def __init__(self, peers: Sequence[int]) -> None:
        """`peers`: process ids of the other ranks."""
        super().__init__(name="watch", daemon=True)
        self._launcher = os.getppid()
        self._peers = [psutil.Process(pid) for pid in peers]
        self._over = threading.Event()

    def run(self) -> None:
        """Poll, and end the process where nobody is left to train with or for."""
        while not self._over.wait(_POLL_SECONDS):
            if os.getppid() != self._launcher:
                os._exit(1)
            if not all(_is_alive(peer) for peer in self._peers):
                if not self._over.wait(_GRACE_SECONDS):
                    os._exit(0)  # it is not this rank that has failed
                return

    def end(self) -> None:
        """Let the others go."""
        self._over.set()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
