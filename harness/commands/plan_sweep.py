"""`harness plan NAME`: what a sweep would run, what each configuration needs, what does not fit, how long."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from harness.commands.sweep import named_question, plan_text
from harness.config.compose import compose_run
from harness.config.devices import device_memory, visible_cuda_devices
from harness.errors import RequestError
from harness.plan.costs import CostGroup, cost_groups, distinguishing_keys
from harness.plan.fetch import fetched, is_at_hand
from harness.plan.fit import fits, largest_cohort
from harness.plan.measured import find_measured
from harness.plan.settings import PlanSettings, split_settings, with_device_defaults
from harness.plan.subject import MARGIN, judged_for, planned_device
from harness.plan.text import aligned, duration
from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.question.question import Question
from harness.question.settings import Method
from harness.records.metrics import format_bytes
from harness.records.redact import message
from harness.sweeping.driver import most_slots
from harness.sweeping.requests import base_of

SHOWN = 16
"""Configurations printed, those with the highest peak first; `--json` has all."""


def plan_sweep(
    name: str,
    overrides: Sequence[str],
    settings: PlanSettings,
    limit: int | None,
    *,
    as_json: bool,
    probe: bool,
) -> int:
    """Print the plan of a sweep; returns the exit code."""
    if settings.cohort != 1:
        raise RequestError(
            f"plan.cohort={settings.cohort} is for one run's plan; a sweep's says how many fit side by side, "
            "and resources.cohort bounds it"
        )
    question = load_question(named_question(name, overrides), overrides)
    settings = _with_hints(settings, question)
    if settings.shape is not None and probe:
        raise RequestError("--probe needs a model that can be loaded, and plan.shape is none")
    question = load_question(
        named_question(name, overrides), with_device_defaults(overrides, settings)
    )
    base = compose_run(base_of(question))
    device = planned_device(settings, base)
    points = check_space(question, lambda config: judged_for(config, device))
    if limit is None and settings.device is None:
        limit = device_memory(device)
    groups = cost_groups(((dict(point), config) for point, config in points), settings)
    if settings.shape is None:
        find_measured(groups, probe=probe)
    for group in groups:
        if limit is not None and group.subject is not None:
            group.cohort = largest_cohort(group.subject, limit, _most_slots(question))
    groups.sort(key=lambda group: -(group.prediction.peak_bytes if group.prediction else 0))
    if as_json:
        print(json.dumps([_tree(group) for group in groups], indent=2))
        return 0
    print(message(plan_text(question, points, base)))
    print("\n".join(_table(question, groups, limit)))
    print("\n".join(_summary(question, groups, limit, device)))
    return 0


def _with_hints(settings: PlanSettings, question: Question) -> PlanSettings:
    """Return the settings with those of the question where the command line gives none.

    A shape stands in for a model that is not at hand.
    """
    hints, _ = split_settings(question.plan)
    given = {
        each.name: getattr(settings, each.name)
        for each in fields(PlanSettings)
        if getattr(settings, each.name) != each.default
    }
    merged = replace(hints, **given)
    if settings.shape is None and is_at_hand(compose_run(base_of(question))):
        merged = replace(merged, shape=None)
    return merged


def _most_slots(question: Question) -> int:
    """Return the most runs that a worker would have side by side."""
    most = most_slots(question)
    return min(most, question.search.in_flight or most)


def _tree(group: CostGroup) -> dict[str, Any]:
    tree: dict[str, Any] = {"overrides": group.points, "refusal": group.refusal}
    if group.prediction is not None:
        tree |= group.prediction.tree()
    return tree | {
        "largest_cohort": group.cohort,
        "steps": group.steps,
        "step_seconds": group.step_seconds,
        "measured": group.measured,
    }


def _table(question: Question, groups: Sequence[CostGroup], limit: int | None) -> list[str]:
    keys = distinguishing_keys(groups)
    seeds = len(question.search.seeds)
    is_grid = question.search.method is Method.grid
    measured = any(group.measured for group in groups)
    head = [*keys, "cells" if is_grid else "points", "predicted peak"]
    head += ["measured"] if measured else []
    head += ["fits", "side by side"] if limit is not None else []
    rows: list[tuple[str, ...]] = [(*head, "steps", "time alone" if is_grid else "time of a run")]
    for group in groups[:SHOWN]:
        row = [", ".join(value or "—" for value in group.values(key)) for key in keys]
        row.append(str(len(group.points)))
        peak = group.prediction.peak_bytes if group.prediction is not None else None
        row.append("refused" if peak is None else format_bytes(peak))
        if measured:
            value = group.measured.get("memory/peak_bytes")
            row.append("—" if value is None else format_bytes(value))
        if limit is not None:
            fitting = group.prediction is not None and fits(group.prediction, limit)
            row += ["yes" if fitting else "NO", str(group.cohort)]
        seconds = group.run_seconds
        if seconds is not None and is_grid:
            seconds *= len(group.points) * seeds
        row += ["—" if group.steps is None else str(group.steps), duration(seconds)]
        rows.append(tuple(row))
    more = len(groups) - SHOWN
    lines = aligned(rows)
    return [*lines, *([f"… and {more} configurations that need less"] if more > 0 else []), ""]


def _summary(
    question: Question, groups: Sequence[CostGroup], limit: int | None, device: str
) -> list[str]:
    lines = []
    if limit is None:
        lines.append("fits: nothing to compare with; give --budget 24GiB")
    else:
        where = f"{format_bytes(limit)} of memory, margin {MARGIN:.0%}"
        bad = [
            group for group in groups if not group.prediction or not fits(group.prediction, limit)
        ]
        if bad:
            count = sum(len(group.points) for group in bad)
            lines.append(
                f"does not fit {where}: {count} of {sum(len(g.points) for g in groups)} points. They are "
                "tried all the same; running out of memory is a run's result"
            )
        else:
            lines.append(f"everything fits {where}")
    planned = ((config, group.prediction) for group in groups for config in group.configs)
    lines += [f"to fetch: {each}" for each in fetched(planned)]
    refused = {group.refusal for group in groups if group.refusal}
    lines += [f"refused: {refusal}" for refusal in sorted(refused)]
    lines.append(_time_text(question, groups, device))
    return lines


def _gpus(question: Question) -> int:
    """Return how many GPUs the sweep would have here; two workers on one GPU share it."""
    wanted = question.resources.devices
    return visible_cuda_devices() if isinstance(wanted, str) else len(set(wanted))


def _time_text(question: Question, groups: Sequence[CostGroup], device: str) -> str:
    """Say how long the search takes at most, on one device and with all runs one after the other."""
    known = [group for group in groups if group.run_seconds is not None]
    cells = sum(len(group.points) for group in groups)
    trials = question.search.trials or cells
    if question.search.method is Method.grid:
        trials = min(trials, cells)
    if not known:
        return (
            "time: unknown; measure it with --probe (12 steps of each configuration), or state "
            "plan.tokens_per_second"
        )
    weights = sum(len(group.points) for group in known)
    mean = sum((group.run_seconds or 0) * len(group.points) for group in known) / weights
    total = mean * trials * len(question.search.seeds)
    gpus = _gpus(question) if device == "cuda" else 1
    several = f"; {duration(total / gpus)} on {gpus} GPUs" if gpus > 1 else ""
    missing = (
        "" if len(known) == len(groups) else f" (from {len(known)} of {len(groups)} configurations)"
    )
    return (
        f"time: at most {duration(total)} of training steps for the search, its runs one after the other on "
        f"one device{several}{missing}; without evaluations, sharing of passes or pruning"
    )
