"""A search with pruning of ours against the whole grid of 64 cells in a loop of TRL processes.

The grid's best cell is found by a sweep of ours over all 64 cells, since a loop would take too long here and
its losses are the same (a few processes are run and compared). Both bests are confirmed on the same seeds
and the test split. The search's time contains its confirmation, the loop's does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.arms import SAME, TRL, Setting, compared
from bench.peers.processes import Finished
from bench.peers.ratios import is_as_good
from bench.peers.sweeps import (
    QUICK_STEPS,
    Loop,
    Measured,
    grid_point,
    our_sweep,
    run_loop,
    run_of,
    warm_caches,
)
from bench.sweep import RANKS, choice, write_question
from harness.sweeping.state import SweepState

TARGETS = ("all_linear", "qv")
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
CELLS = len(TARGETS) * len(RANKS) * len(RATES)
CONFIRM = {"top": 1, "seeds": [10, 11, 12], "split": "test"}
STEPS, TRIALS, EVERY_STEPS, IN_FLIGHT = 60, 64, 10, 16
SAMPLER_SEEDS = (100, 101, 102)
"""Trials, those in flight, and the interval were chosen by replaying searches with sampler seeds 0 to 11 on
the recorded curves of all 64 cells (bench/LOG.md); these seeds were not among them."""


def sixty_four(setting: Setting) -> dict[str, Any]:
    """Measure the search, the processes, and what both find."""
    steps = QUICK_STEPS if setting.quick else STEPS
    base = (f"optim.steps={steps}", "data.validation_rows=100")
    space = space_of(RATES[2:4] if setting.quick else RATES)
    warm_caches(setting)
    grid = _grid(setting, base, space)
    measured = Measured()
    for repetition, seed in enumerate(SAMPLER_SEEDS[: 1 if setting.quick else None]):
        before = _process(setting, base, grid, 2 * repetition)
        finished, state, _ = our_sweep(
            setting, _search(setting, base, space, seed), f"search{seed}"
        )
        after = _process(setting, base, grid, 2 * repetition + 1)
        measured.sweeps.append(finished)
        measured.states.append(state)
        loop = Loop(
            finished=before.finished + after.finished,
            agreements=before.agreements + after.agreements,
        )
        measured.loops[TRL].append(loop)
    return {
        "cells": CELLS,
        "steps": steps,
        "grid": _found(grid.state),
        "searches": [_found(state) for state in measured.states],
        "same_best": [
            is_as_good(_confirmed(state), _confirmed(grid.state)) for state in measured.states
        ],
        "our_grid_seconds": grid.finished.seconds,
    } | measured.tree(CELLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    finished: Finished
    state: SweepState
    out: Path


def space_of(rates: Sequence[float]) -> dict[str, str]:
    """Return the axes of the grid."""
    return {
        "lora": choice(TARGETS),
        "lora.rank": choice(RANKS),
        "optim.lr": choice(rates),
    }


def _grid(setting: Setting, base: tuple[str, ...], space: dict[str, str]) -> _Grid:
    file = write_question(setting.directory, "grid", [*SAME, *base], space, confirm=CONFIRM)
    finished, state, out = our_sweep(setting, file, "grid64")
    return _Grid(finished=finished, state=state, out=out)


def _search(setting: Setting, base: tuple[str, ...], space: dict[str, str], seed: int) -> Path:
    """Write the question of one search; its sampler's seed is all that differs."""
    search = {
        "method": "tpe",
        "trials": 4 if setting.quick else TRIALS,
        "pruner": "asha",
        "in_flight": IN_FLIGHT,
        "sampler_seed": seed,
    }
    every = 4 if setting.quick else EVERY_STEPS
    return write_question(
        setting.directory,
        f"search{seed}",
        [*SAME, *base, f"eval.every_steps={every}"],
        space,
        search=search,
        confirm=CONFIRM,
    )


def _process(setting: Setting, base: tuple[str, ...], grid: _Grid, turn: int) -> Loop:
    """Run one TRL process: another cell every turn, the target sets in alternation."""
    targets = TARGETS[turn % len(TARGETS)]
    work = setting.work([*SAME, *base, f"lora={targets}"], f"search_work_{targets}")
    cell = RANKS[turn % len(RANKS)], RATES[2 + turn % 2]
    finished = run_loop(setting, TRL, [cell], work, f"search{turn}")
    run_id = run_of(grid.state, {"lora": targets} | grid_point(*cell))
    return Loop(finished=finished, agreements=[compared(grid.out, run_id, finished[0].result)])


def _confirmed(state: SweepState) -> list[float]:
    """Return the loss of the best confirmed cell for each fresh seed."""
    (best,) = state.confirmed
    return best.values["eval/loss"]


def _found(state: SweepState) -> dict[str, Any]:
    """Return what a sweep has found, and by how much training."""
    (best,) = state.confirmed
    return {
        "best": best.point,
        "confirmed_eval_loss": _confirmed(state),
        "trials": len(state.trials),
        "pruned": sum(trial.status == "pruned" for trial in state.trials),
        "steps_trained": sum(run.step for run in state.runs),
    }
