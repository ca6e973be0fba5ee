"""Ranks that do nothing but end, in the way that ENDING says; torchrun starts them for the real ones."""

import os
import signal
import sys
import time
from pathlib import Path

from harness.parallel.rendezvous import NO_MEMORY, REFUSED, Rendezvous, rank_log


def end(directory: Path) -> None:
    """Let one rank end; the other one waits for it, whatever it is asked."""
    rendezvous, rank = Rendezvous(directory), int(os.environ["RANK"])
    ending, failing = os.environ["ENDING"], int(os.environ["FAILING"])
    if rank == 0:
        rendezvous.leader.write_text(str(os.getpid()))
    match ending if rank == failing else "waits":
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refuses":
            rendezvous.refusal.write_text("lora.rank=512 is above 32")
            sys.exit(REFUSED)
        case "breaks":
            rank_log(rendezvous.asked()[0], rank).write_text(
                "Traceback …\nOSError: no space left on device\n"
            )
            sys.exit(1)
        case "has no memory":
            rank_log(rendezvous.asked()[0], rank).write_text(
                "Traceback …\ntorch.OutOfMemoryError: no room\n"
            )
            sys.exit(NO_MEMORY)
        case _:
            time.sleep(60)


if __name__ == "__main__":
    end(Path(sys.argv[1]))
