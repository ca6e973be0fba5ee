"""A short run on the embedded base, made by the command itself, for tests of what becomes of it."""

from pathlib import Path

from harness.cli.main import dispatch
from harness.records.record import RunStatus, read_record
from harness.records.run_directory import RunDirectory

SHORT = (
    *("data=dialect", "data.train_rows=40", "data.validation_rows=12", "data.test_rows=4"),
    *(
        "optim.steps=6",
        "optim.batch_size=4",
        "eval=loss",
        "tracker=none",
        "checkpoint.every_seconds=null",
    ),
)


def left_run(out: Path, *overrides: str) -> RunDirectory:
    """Train one run under `out` and return its directory."""
    before = set((out / "runs").glob("*"))
    assert dispatch(["run", *SHORT, f"paths.out={out}", *overrides]) == 0
    (made,) = set((out / "runs").glob("*")) - before
    directory = RunDirectory(made)
    assert read_record(directory.record).status is RunStatus.completed
    return directory
