"""Searches replayed on the recorded curves of a whole grid: how often does which one find the best cell?

    harness sweep GRID.yaml     # a grid with eval.every_steps=5 in its base, and its best cells confirmed
    python -m bench.replay GRID --trials 48 --pruner asha --every 10 --seeds 12

The study, sampler and pruner are the real ones; a run's reports and its end are read from the grid's
records, for some runs side by side that make a step each at a time. A search is as good as the grid where
its best cell, by the grid's confirmation, is (`bench.peers.ratios.is_as_good`); a cell that the grid has not
confirmed counts as worse. Nothing is trained, so a dozen searches take seconds. Made to choose how
`bench.peers.search` searches; sampler seeds that were replayed are not measured there.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.ratios import is_as_good
from harness.question.points import Point
from harness.question.question import Method, PrunerName, Question, load_question
from harness.question.settings import SearchSettings
from harness.records.record import read_metrics
from harness.study.study import Study
from harness.sweeping.driver import most_in_flight
from harness.sweeping.state import SweepDirectory, SweepState, read_state

Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """What a grid has recorded."""

    curves: dict[Cell, dict[int, float]]
    """Of each cell: steps -> evaluated loss, the end included."""
    confirmed: dict[Cell, list[float]]
    steps: int

    @property
    def best(self) -> list[float]:
        """The confirmation of the cell that the grid found best."""
        best = min(self.curves, key=lambda cell: self.curves[cell][self.steps])
        return self.confirmed[best]


@dataclass(slots=True)
class Replayed:
    """One search."""

    steps: int = 0
    """Trained, over all runs, confirmation apart."""
    ended: dict[Cell, tuple[int, bool]] = field(default_factory=dict)
    """Of each cell that was trained: after how many steps it ended, and whether it was pruned."""
    best: list[Cell] = field(default_factory=list)
    """Completed cells, the best one first."""


def cell_of(point: Point) -> Cell:
    """Return a point as a key."""
    return tuple(sorted(point.items()))


def recorded(out: Path, state: SweepState) -> Grid:
    """Read the curves of every cell of a grid that was trained with one seed."""
    (metric,) = state.objectives
    curves: dict[Cell, dict[int, float]] = {}
    for trial in state.trials:
        (run_id,) = trial.runs
        rows = read_metrics(out / "runs" / run_id / "metrics.jsonl").rows
        curve = {int(row["step"] or 0): row[metric] for row in rows if row.get(metric) is not None}
        assert trial.values is not None, f"trial {trial.number} is {trial.status}"
        curves[cell_of(trial.point)] = {**curve, len(rows): trial.values[0]}  # pyright: ignore[reportArgumentType]
    confirmed = {cell_of(line.point): line.values[metric] for line in state.confirmed}
    return Grid(curves, confirmed, max(map(max, curves.values())))


def replay(question: Question, grid: Grid, every: int, slots: int) -> Replayed:
    """Search as `question` asks, on recorded curves, with at most `slots` trials in flight."""
    done = Replayed()
    live: dict[int, tuple[Cell, int]] = {}
    also: dict[Cell, list[int]] = {}
    """Trials that ask for a cell in training."""
    with tempfile.TemporaryDirectory() as scratch:
        study = Study.open(
            question,
            f"sqlite:///{scratch}/study.db",
            eval_every_steps=every,
            total_steps=grid.steps,
        )
        trials = question.search.trials or len(grid.curves)
        while True:
            while len(live) < slots and len(study.trials) < trials:
                trial = study.ask()
                cell = cell_of(trial.point)
                if cell in done.ended:
                    _tell(study, trial.number, cell, done, grid)
                elif cell in {known for known, _ in live.values()}:
                    also.setdefault(cell, []).append(trial.number)
                else:
                    live[trial.number] = cell, 0
            if not live:
                break
            for number, (cell, step) in list(live.items()):
                done.steps += 1
                live[number] = cell, step + 1
                if _is_over(study, number, grid.curves[cell], step + 1, every, grid.steps):
                    del live[number]
                    done.ended[cell] = step + 1, step + 1 < grid.steps
                    for each in [number, *also.pop(cell, [])]:
                        _tell(study, each, cell, done, grid)
        done.best = [cell_of(trial.point) for trial in study.best(trials)]
        study.close()
    return done


def _is_over(
    study: Study, number: int, curve: dict[int, float], step: int, every: int, total: int
) -> bool:
    if step == total:
        return True
    return step % every == 0 and study.report(number, step, curve[step])


def _tell(study: Study, number: int, cell: Cell, done: Replayed, grid: Grid) -> None:
    """Tell how a cell has ended, as the driver does also for a cell that is known."""
    _, is_pruned = done.ended[cell]
    if is_pruned:
        study.prune(number)
    else:
        study.complete(number, [grid.curves[cell][grid.steps]], [])


def main() -> None:
    """Replay searches with sampler seeds 0, 1, … and print how often they find as good a cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("grid", help="name of the sweep that has trained every cell")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--method", choices=[each.value for each in Method], default="tpe")
    parser.add_argument("--pruner", choices=[each.value for each in PrunerName], default="asha")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--every", type=int, default=10, help="steps between two reports")
    parser.add_argument("--reduction", type=int, default=3, help="search.reduction_factor")
    parser.add_argument(
        "--slots", type=int, help="trials in flight (default: as many as the driver has)"
    )
    parser.add_argument("--seeds", type=int, default=12)
    given = parser.parse_args()
    directory = SweepDirectory(given.out, given.grid)
    grid = recorded(given.out, read_state(directory))
    found = []
    slots = given.slots or most_in_flight(SearchSettings(trials=given.trials))
    for seed in range(given.seeds):
        search = [f"search.method={given.method}", f"search.pruner={given.pruner}"]
        search += [f"search.trials={given.trials}", f"search.sampler_seed={seed}", "confirm=null"]
        search.append(f"search.reduction_factor={given.reduction}")
        every = f"eval.every_steps={given.every}"
        question = load_question(str(directory.question), [*search, every])
        found.append(replay(question, grid, given.every, slots))
    good = sum(
        is_as_good(grid.confirmed[each.best[0]], grid.best)
        for each in found
        if each.best and each.best[0] in grid.confirmed
    )
    steps = [each.steps for each in found]
    print(
        f"{given.method}, {given.pruner} {given.reduction}, {given.trials} trials, {slots} in flight, every "
        f"{given.every} steps: as good as the grid in {good} of {len(found)}; steps trained "
        f"{statistics.fmean(steps):.0f} (at most {max(steps)}) of the grid's "
        f"{grid.steps * len(grid.curves)}; cells "
        f"{statistics.fmean(len(each.ended) for each in found):.0f}"
    )


if __name__ == "__main__":
    main()
