"""What members lease of a sweep, by name: the cells of its search, and each run of its confirmation."""

from collections.abc import Iterable, Sequence

from harness.errors import RequestError
from harness.study.study import Trial
from harness.sweeping.ledger import Cell, Run, RunState


def item_of_cell(cell: Cell) -> str:
    """Return what is leased of a cell: the first of its trials that nobody has told."""
    return f"trial {min(cell.trials)}"


def item_of_run(run: Run) -> str:
    """Return what is leased of a confirmation."""
    return f"run {run.run_id}"


def in_training(
    item: str, cells: Iterable[Cell], confirmed: Iterable[tuple[Trial, list[Run]]]
) -> dict[str, str]:
    """Return the runs that our workers train for an item, each with the item."""
    runs = [r for c in cells if c.trials and item_of_cell(c) == item for r in c.everything]
    runs += [run for _, confirming in confirmed for run in confirming if item_of_run(run) == item]
    return {run.run_id: item for run in runs if run.state is RunState.assigned}


def refuse_another_run(trial: Trial, runs: Sequence[str]) -> None:
    """Raise RequestError where a trial's runs are others here than for the member that asked for it."""
    others = trial.notes.get("runs", list(runs))
    if others != list(runs):
        raise RequestError(
            f"trial {trial.number} is {', '.join(others)} for the other members, and {', '.join(runs)} "
            "here: model, data or the harness's version differ on this machine; give it what the others "
            "have, or begin another sweep with name=OTHER"
        )
