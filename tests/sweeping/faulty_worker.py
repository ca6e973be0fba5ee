"""A worker in which some runs misbehave in the middle of their training, by their rank."""

import os
import signal
import sys
import time

import torch

from harness.engine.micro_step import Work
from harness.sweeping import worker
from harness.training.slot import Slot

RAISES, OUT_OF_MEMORY, NOT_A_NUMBER, HANGS, DIES, BEHAVES = 1, 2, 3, 4, 5, 6
AFTER_STEPS = 2

_next_work = Slot.next_work


def _misbehave(self: Slot) -> Work:
    if self.progress.step >= AFTER_STEPS:
        match self.config.lora.rank:
            case 1:
                raise ValueError("made to raise")
            case 2:
                raise torch.OutOfMemoryError("made to run out of memory")
            case 3:
                with torch.no_grad():
                    next(iter(self.adapter.parameters.values())).fill_(float("nan"))
            case 4:
                time.sleep(3600)
            case 5:
                os.kill(os.getpid(), signal.SIGKILL)
    return _next_work(self)


if __name__ == "__main__":
    Slot.next_work = _misbehave
    worker.main(int(sys.argv[1]))
