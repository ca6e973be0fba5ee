"""`python -m bench.peers.ours OVERRIDE…`: `harness run`, with marks for the bench; nothing else differs."""

import sys
from typing import TYPE_CHECKING, Self

from bench.peers.channel import Channel
from harness.cli import main as cli
from harness.commands import run

if TYPE_CHECKING:
    from harness.training.session import Event

CHANNEL = Channel()


class MarkedDisplay(run.RunDisplay):
    """The run's display, which also tells the bench what it is shown."""

    def __enter__(self) -> Self:
        CHANNEL.mark("imported")  # and the data prepared; the base comes next
        return super().__enter__()

    def show(self, event: "Event") -> None:
        """Show and mark."""
        from harness.training.session import RunEnded, RunStarted, StepDone

        super().show(event)
        match event:
            case RunStarted():
                CHANNEL.mark("loaded")
            case StepDone():
                CHANNEL.step_done(event.entry.slot.progress.step)
            case RunEnded():
                CHANNEL.mark("result", run_id=event.record.run_id)


if __name__ == "__main__":
    run.RunDisplay = MarkedDisplay
    cli.main(["run", *sys.argv[1:]])
