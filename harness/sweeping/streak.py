"""When so many runs fail in a row that something else than a run is at fault. Must not import torch."""

from harness.records.record import Record, RunStatus
from harness.sweeping.ledger import Ledger, Run, RunState

MOST_IN_A_ROW = 8
"""Runs that may fail one after another, of every kind that is left."""
MOST_OF_SOME_KINDS = 24
"""Runs that may, in an adaptive search, though other kinds might still be asked for."""


class Streak:
    """The runs that have failed since one has not.

    A full disk or a broken device fails every run within seconds, and a night's trials in minutes. A kind of
    run that cannot work (a format that a device lacks) is not that: other kinds still come to their ends.
    """

    def __init__(self, ledger: Ledger, *, adaptive: bool) -> None:
        """`adaptive`: results decide what is asked for next, so that what has ended may come again."""
        self._ledger = ledger
        self._adaptive = adaptive
        self._failed: list[tuple[Run, Record]] = []

    def add(self, run: Run, record: Record) -> None:
        """Take note of how a run has ended."""
        if record.status is not RunStatus.failed:
            self._failed.clear()
        else:
            self._failed.append((run, record))

    @property
    def complaint(self) -> str | None:
        """Why nothing more should be begun; None where runs may go on."""
        if len(self._failed) < MOST_IN_A_ROW:
            return None
        may_come = {
            run.cohort
            for run in self._ledger.runs.values()
            if self._adaptive or run.state in (RunState.waiting, RunState.assigned)
        }
        of_every_kind = may_come <= {run.cohort for run, _ in self._failed}
        if not of_every_kind and not (self._adaptive and len(self._failed) >= MOST_OF_SOME_KINDS):
            return None
        run, record = self._failed[-1]
        return (
            f"{len(self._failed)} runs have failed one after another, so nothing more is begun here. The "
            f"last was {run.run_id}: {record.error}; its log is {run.request.directory.log}. Once that is "
            "mended, the same command goes on with what is left; with name=OTHER it also trains those again "
            "that have failed, and takes the results of the others"
        )
