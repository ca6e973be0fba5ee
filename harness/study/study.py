"""A study of a sweep: which point comes next, what came of it, and what is best. Optuna by ask and tell.

One process writes a study, or several in turn; each may be killed at any instruction. Readers come and go.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.question.axes import Axis
from harness.question.load import question_of
from harness.question.points import Point
from harness.question.question import Question
from harness.question.rate_law import transfer_stages, transferred
from harness.question.settings import Method, Transfer
from harness.question.widen import contains
from harness.records.metrics import Direction
from harness.study.database import (
    QUESTION_KEY,
    MirroredStorage,
    as_json,
    extend,
    find_or_create,
    mark_or_compare,
    open_database,
)
from harness.study.leases import Leases
from harness.study.samplers import (
    LEARNS_PER_LEVEL,
    LevelStudy,
    PointSampler,
    build_pruner,
    build_sampler,
    compared_levels,
    next_level,
    pruner_settings,
    sampler_settings,
    seed_of_trial,
    without_optuna_warnings,
)
from harness.study.trial import (
    Trial,
    TrialStatus,
    distribution_of,
    exists,
    suggest,
    trial_of,
    value_of,
)

__all__ = ["Study", "Trial", "TrialStatus"]

_INSTRUCTIONS_KEY = "instructions"
_PRUNE_KEY = "harness:prune"  # a trial's attribute: the step after which the pruner gave it up


class Study:
    """A question's trials in a database, of which this process is the only writer, or one in its `turn`.

    After an exception from a call that writes, open the study again: what the call had done may be half.
    """

    def __init__(
        self,
        question: Question,
        storage: MirroredStorage,
        pruner: BasePruner,
        total_steps: int | None,
        leases: Leases | None,
    ) -> None:
        self.question: Question
        """What it answers; more trials or a wider space may be asked for while it goes on."""
        self._asked: Any = None
        self.leases = leases
        self._read_at = time.monotonic()
        self._storage = storage
        self._total_steps = total_steps
        self._study = optuna.load_study(study_name=question.name, storage=storage, pruner=pruner)
        self._go_by(question if leases is None else self._as_others_ask(question))
        pruner.prune(self._study, create_trial(state=TrialState.RUNNING))  # Hyperband's brackets

    @classmethod
    def open(
        cls,
        question: Question,
        url: str,
        *,
        eval_every_steps: int | None,
        total_steps: int | None,
        leases: Leases | None = None,
        asks: bool = True,
    ) -> "Study":
        """Create the study named as its question, or load it with everything that was told.

        Args:
            url: a SQLAlchemy url, `sqlite:////path/study.db` or `postgresql://…`.
            eval_every_steps: steps between two reports, None where a run reports nothing.
            total_steps: steps of every run, None where they differ.
            leases: of this member, where others may write too; members that join answer what `asks`.

        Raises:
            RequestError: there is no such database, it holds another question, or the method or pruner
                cannot work on this one.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        turn = leases.turn() if leases is not None else nullcontext()
        with without_optuna_warnings(), turn:
            drawing = sampler_settings(question)
            pruning = pruner_settings(question, eval_every_steps, total_steps)
            database = open_database(url)
            if leases is not None:
                leases.join()
            storage = MirroredStorage(database, find_or_create(database, question))
            mark_or_compare(storage, question, drawing, pruning, asks=asks)
            if leases is not None and not storage.get_all_trials(storage.study_id, deepcopy=False):
                leases.forget()
            pruner = build_pruner(question.search.pruner, pruning)
            return cls(question, storage, pruner, total_steps, leases)

    def _go_by(self, question: Question) -> None:
        """Ask for what a question asks for, and see by its axes what was told."""
        self.question = question
        self._axes: Sequence[Axis] = question.space.axes
        self._settings = sampler_settings(question)
        self._levels = compared_levels(question)
        self._stages: list[list[Point]] = []
        """Points of a grid whose trials before them decide which of them are tried."""
        self._given = self._given_points()
        self._trials: list[Trial] = []
        for trial in self._storage.get_all_trials(self._storage.study_id, deepcopy=False):
            self._transfer_rates()
            self._trials.append(self._seen(trial))

    def extend(self, change: Callable[[Question], Question]) -> None:
        """Go on with more trials or a wider space: what `change` makes of the question as it is asked now.

        Everything that was told has to be part of it.
        """
        with self.turn():
            question = change(self.question)
            if question != self.question:
                self._asked = extend(self._storage, question)
                self._go_by(question)

    def _as_others_ask(self, mine: Question) -> Question:
        """Return a member's question with what another one was asked for beyond it."""
        tree = self._storage.get_study_user_attrs(self._storage.study_id).get(QUESTION_KEY)
        if tree is None or tree == self._asked:
            return mine
        self._asked = tree
        asked = question_of(tree, mine.name, [])
        if not contains(asked.space, mine.space):
            return mine
        more = max(asked.search.trials or 0, mine.search.trials or 0) or None
        wider = replace(
            mine,
            space=asked.space,
            compare=asked.compare,
            search=replace(mine.search, trials=more),
        )
        if wider.space != mine.space:
            self._storage.widen({axis.key: distribution_of(axis) for axis in wider.space.axes})
        return wider

    @property
    def instructions(self) -> list[Any]:
        """What members have heard from users and passed on to each other."""
        notes = self._storage.get_study_user_attrs(self._storage.study_id)
        return list(notes.get(_INSTRUCTIONS_KEY, ()))

    def pass_on(self, instructions: Sequence[Any]) -> None:
        """Let other members hear instructions, each of which they get once."""
        with self.turn():
            known = self.instructions
            new = [each for each in map(as_json, instructions) if each not in known]
            if new:
                self._storage.set_study_user_attr(
                    self._storage.study_id, _INSTRUCTIONS_KEY, [*known, *new]
                )

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as Optuna's own functions take it."""
        return self._study

    def close(self) -> None:
        """Close the database. A study that was not closed is as good, but its file is two."""
        self._storage.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one who writes, inside the block, knowing all that others have written."""
        if self.leases is None or self.leases.has_turn:
            yield
            return
        with self.leases.turn():
            self.refresh()
            yield

    def refresh(self, older_than: float = 0.0) -> None:
        """Read what other members have written, if that was last done so many seconds ago."""
        if time.monotonic() - self._read_at < older_than:
            return
        changed = self._storage.refresh()
        self._read_at = time.monotonic()
        wider = self._as_others_ask(self.question)
        if wider != self.question:
            self._go_by(wider)
        for number in changed:
            if number == len(self._trials):
                self._transfer_rates()
                self._trials.append(self._seen(self._frozen(number)))
            else:
                self._look_again(number)

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of number."""
        return list(self._trials)

    def ask(self) -> Trial:
        """Return the next trial, running; it is in the database with its whole point, or not at all.

        Raises:
            ValueError: a grid has no more points.
            RunFailed: another process writes trials into the study.
        """
        search, number = self.question.search, len(self._trials)
        self._transfer_rates()
        if search.method is Method.grid and number >= len(self._given):
            raise ValueError(f"all {number} points of the grid have been asked for")
        given, levels = self._given_values(number), self._next_levels(number)
        with without_optuna_warnings():
            seed = seed_of_trial(search.sampler_seed, number)
            sampler = build_sampler(search.method, self._settings, seed)
            self._study.sampler = PointSampler(
                sampler,
                self._axes,
                given,
                levels,
                learns_per_level=search.method in LEARNS_PER_LEVEL,
            )
            draft = self._study.ask()
            assert draft.number == number, (draft.number, number)
            point: Point = {}
            for axis in self._axes:
                if exists(axis, point):
                    point[axis.key] = suggest(draft, axis)
        if self.leases is not None:
            self.leases.check_turn()
        self._storage.keep_draft(self._id(number))
        self._trials.append(self._seen(self._frozen(number)))
        return self._trials[number]

    def note(self, number: int, key: str, value: Any) -> None:
        """Note a JSON value of a running trial."""
        self._storage.set_trial_user_attr(self._id(number), key, as_json(value))
        self._look_again(number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Keep the first objective of a running trial after `step` steps; return whether to prune it.

        A step that was reported before is not judged again: the answer is the one that was given.
        """
        trial = self._frozen(number)
        if step in trial.intermediate_values or _PRUNE_KEY in trial.system_attrs:
            return _PRUNE_KEY in trial.system_attrs
        judged = copy.copy(trial)
        judged.intermediate_values = trial.intermediate_values | {step: float(value)}
        prune = self._study.pruner.prune(self._rivals(number), judged)
        if self._total_steps is not None and step >= self._total_steps:
            prune = False  # it has cost all it can cost
        if prune:  # before the report: after a crash in between, the report comes again
            self._storage.set_trial_system_attr(self._id(number), _PRUNE_KEY, step)
        self._storage.set_trial_intermediate_value(self._id(number), step, float(value))
        self._look_again(number)
        return prune

    def complete(self, number: int, values: Sequence[float], violations: Sequence[float]) -> None:
        """Tell the outcome of a trial: a value per objective, and per constraint how far it is broken.

        The worst value is infinite (diverged, out of memory). An infinite violation is stored as a finite
        one, as large as the largest distance from the limit seen so far: samplers fit it, JSON holds it.

        Raises:
            ValueError: a number is missing or not a number, or the trial was told otherwise before.
        """
        told = tuple(float(value) for value in values)
        constraints = self.question.constraints
        counts = len(self.question.objectives), len(constraints)
        if (len(told), len(violations)) != counts or any(map(math.isnan, (*told, *violations))):
            raise ValueError(
                f"trial {number}: {counts[0]} values and {counts[1]} violations are needed, none of them"
                f" NaN; got {told} and {tuple(violations)}"
            )
        trial = self._trials[number]
        if trial.status is TrialStatus.completed and trial.values == told:
            return
        self._check_running(number, TrialStatus.completed)
        running = optuna.trial.Trial(self._study, self._id(number))
        for index, constraint in enumerate(constraints):
            if constraint.metric not in running.constraints:  # a crash may have left it there
                violation = self._finite(index, violations[index])
                running.set_constraint(constraint.metric, violation)
        self._tell(number, TrialState.COMPLETE, told)

    def prune(self, number: int) -> None:
        """Tell that a trial was given up; its last report says how good it was."""
        if self._trials[number].status is not TrialStatus.pruned:
            self._check_running(number, TrialStatus.pruned)
            self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Tell that a trial says nothing about its point; the reason becomes its note `reason`."""
        if self._trials[number].status is not TrialStatus.failed:
            self._check_running(number, TrialStatus.failed)
            self.note(number, "reason", reason)
            self._tell(number, TrialState.FAIL)

    def best(self, count: int) -> list[Trial]:
        """Return up to `count` completed trials that keep all constraints and have finite values, best first.

        With several objectives front follows front; within one the first objective decides.
        """
        finite = [
            (trial, trial.values)
            for trial in self._trials
            if trial.status is TrialStatus.completed
            and trial.values is not None
            and all(map(math.isfinite, trial.values))
            and all(violation <= 0 for violation in trial.violations)
        ]
        directions = [objective.direction for objective in self.question.objectives]
        order = ranked([values for _, values in finite], directions)
        return [finite[index][0] for index in order[:count]]

    @property
    def awaits_results(self) -> bool:
        """Whether the next point of a grid follows from trials that are not told yet."""
        self._transfer_rates()
        return bool(self._stages) and len(self._trials) >= len(self._given)

    # Inside --------------------------------------------------------------------------------------

    def _given_points(self) -> list[Point]:
        """Return the points of a grid, or the starts; where rates are transferred, those of the first
        ranks.
        """
        search, space = self.question.search, self.question.space
        if search.method is not Method.grid:
            return list(search.starts)
        if search.transfer is Transfer.none:
            return self._points_behind_what_was_asked()
        first, *self._stages = transfer_stages(space)
        return list(first)

    def _points_behind_what_was_asked(self) -> list[Point]:
        """Return a grid's points: those of its trials first, however its space has grown since."""
        frozen = self._storage.get_all_trials(self._storage.study_id, deepcopy=False)
        asked = [trial_of(trial, self.question, {}).point for trial in frozen]
        every = [*asked, *self.question.space.points()]
        return list({tuple(point.items()): point for point in every}.values())

    def _transfer_rates(self) -> None:
        """Give the points of the next rank, if all trials before it are told."""
        while self._stages and len(self._trials) >= len(self._given):
            if any(trial.status is TrialStatus.running for trial in self._trials):
                return
            sign = -1.0 if self.question.objectives[0].direction is Direction.maximize else 1.0
            told = [
                (trial.point, math.inf if trial.values is None else sign * trial.values[0])
                for trial in self._trials
            ]
            self._given += transferred(self._stages.pop(0), told)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._storage.study_id, number)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _look_again(self, number: int) -> None:
        self._trials[number] = self._seen(self._frozen(number))

    def _given_values(self, number: int) -> dict[str, Any]:
        """Return what a grid fixes, or a start, which may leave axes to the sampler."""
        if number >= len(self._given):
            return {}
        axes = {axis.key: axis for axis in self._axes}
        return {key: value_of(axes[key], text) for key, text in self._given[number].items()}

    def _next_levels(self, number: int) -> dict[str, Any]:
        """Return the compared levels of the next trial; none for a start, or where nothing is compared."""
        if not self._levels or number < len(self._given):
            return {}
        level = next_level(self._levels, [trial.point for trial in self._trials])
        axes = {axis.key: axis for axis in self._axes}
        return {key: value_of(axes[key], text) for key, text in level.items()}

    def _rivals(self, number: int) -> optuna.Study:
        """Return the study as a pruner sees it: a level is not given up because another is better."""
        if not self.question.compare:
            return self._study
        compared = {key for compare in self.question.compare for key in compare.axes}
        params = self._frozen(number).params
        levels = {key: value for key, value in params.items() if key in compared}
        return cast(optuna.Study, LevelStudy(self._study, levels))

    def _finite(self, index: int, violation: float) -> float:
        if math.isfinite(violation):
            return float(violation)
        seen = [abs(trial.violations[index]) for trial in self._trials if trial.violations]
        return math.copysign(max(seen, default=1.0) or 1.0, violation)

    def _check_running(self, number: int, status: TrialStatus) -> None:
        trial = self._trials[number]
        if trial.status is not TrialStatus.running:
            raise ValueError(
                f"trial {number} was told before: {trial.status.value} {trial.values or ''}; now it is"
                f" to be {status.value}"
            )

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        with without_optuna_warnings():
            self._study.tell(number, values, state)
        self._look_again(number)

    def _seen(self, trial: FrozenTrial) -> Trial:
        is_given = trial.number < len(self._given)
        return trial_of(trial, self.question, self._given[trial.number] if is_given else {})


def ranked(values: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Return the indices of `values`, best first.

    The Pareto front comes first, then the front of what is left, and so on (the non-dominated sorting of
    Deb et al. 2002); within a front the first objective decides, then the order given.
    """
    if not values:
        return []
    signs = [-1.0 if direction is Direction.maximize else 1.0 for direction in directions]
    costs = np.asarray(values, dtype=float) * signs
    fronts = front_of_each(costs)
    return sorted(range(len(costs)), key=lambda index: (fronts[index], costs[index, 0]))


def front_of_each(costs: np.ndarray) -> list[int]:
    """Return the number of each row's front, 0 for the rows that no other is better than; less is better."""
    if costs.shape[1] == 1:
        return np.unique(costs[:, 0], return_inverse=True)[1].tolist()
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(axis=-1)
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=-1)
    dominates = np.logical_and(no_worse, better)
    fronts = np.full(len(costs), -1)
    number = 0
    while (left := fronts < 0).any():
        fronts[left & ~dominates[left].any(axis=0)] = number
        number += 1
    return fronts.tolist()
