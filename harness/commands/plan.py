"""`harness plan`: what a run or a sweep would need, from the configuration alone; nothing is trained."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.base.quick_imports import quick_imports
from harness.config.compose import compose_run
from harness.config.resources import Shard
from harness.config.schema import RunConfig
from harness.config.storage import label_of
from harness.errors import RequestError
from harness.plan.settings import PlanSettings, parse_bytes, split_settings
from harness.records.metrics import format_bytes

if TYPE_CHECKING:
    from harness.plan.costs import CostGroup
    from harness.plan.prediction import Prediction
    from harness.plan.subject import Subject

MAX_COHORT = 64
"""Runs side by side that are tried for the largest cohort that fits."""


def plan_command(
    words: Sequence[str], *, budget: str | None, explain: bool, probe: bool, as_json: bool
) -> int:
    """Print the plan of a run, or of the sweep that the first word names; returns the exit code."""
    limit = None if budget is None else parse_bytes(budget, "--budget")
    settings, overrides = split_settings(words)
    with quick_imports():
        return _plan(overrides, settings, limit, explain=explain, probe=probe, as_json=as_json)


def _plan(
    overrides: Sequence[str],
    settings: PlanSettings,
    limit: int | None,
    *,
    explain: bool,
    probe: bool,
    as_json: bool,
) -> int:
    if overrides and "=" not in overrides[0] and not overrides[0].startswith("~"):
        from harness.commands.plan_sweep import plan_sweep

        if explain:
            raise RequestError("--explain is about one run: give overrides, not a sweep's name")
        return plan_sweep(
            overrides[0], overrides[1:], settings, limit, probe=probe, as_json=as_json
        )
    config = planned_config(overrides, settings)
    return _plan_run(config, settings, limit, explain=explain, probe=probe, as_json=as_json)


def planned_config(overrides: Sequence[str], settings: PlanSettings) -> RunConfig:
    """Return the configuration that is planned."""
    return compose_run(with_device_defaults(overrides, settings))


def with_device_defaults(overrides: Sequence[str], settings: PlanSettings) -> list[str]:
    """Return the overrides with the compute type that is the planned device's default, wherever this runs.

    Raises RequestError for a model beside `plan.shape`, which would be ignored.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    model = sorted(given & {"model", "model.name", "model.revision"})
    if settings.shape is not None and model:
        raise RequestError(
            f"{', '.join(model)} would be ignored beside plan.shape; give one of them"
        )
    if settings.device is None or "quant.compute_dtype" in given:
        return list(overrides)
    name = "bfloat16" if settings.device == "cuda" else "float32"
    return [*overrides, f"quant.compute_dtype={name}"]


def _plan_run(
    config: RunConfig,
    settings: PlanSettings,
    limit: int | None,
    *,
    explain: bool,
    probe: bool,
    as_json: bool,
) -> int:
    from harness.plan.costs import CostGroup, stated_step_seconds
    from harness.plan.explain import explanation
    from harness.plan.subject import MARGIN, subject_of
    from harness.plan.text import base_text, duration, prediction_text

    subject = subject_of(config, settings)
    prediction = subject.predict(settings.cohort)
    group = CostGroup(configs=[config], points=[{}], subject=subject)
    group.step_seconds = stated_step_seconds(group, settings)
    _measure(group, settings, probe=probe)
    if as_json:
        tree = prediction_tree(prediction)
        tree |= {"measured": group.measured, "steps": group.steps, "run_seconds": group.run_seconds}
        print(json.dumps(tree, indent=2))
    else:
        print(heading(subject))
        print(prediction_text(prediction, MARGIN, group.measured), end="")
        if group.run_seconds is not None:
            print(f"{group.steps} steps alone: {duration(group.run_seconds)}")
        if explain:
            print()
            print(base_text(prediction.modules))
            print(explanation(prediction, config, subject.model.linears, subject.batch), end="")
    if limit is None:
        return 0
    print(fit_text(subject, prediction, limit), file=sys.stderr if as_json else sys.stdout)
    return 0


def _measure(group: "CostGroup", settings: PlanSettings, *, probe: bool) -> None:
    """Add what a probe of this configuration, or the run alone, has measured, if there is any."""
    from harness.plan.measured import find_measured

    if settings.shape is None:
        find_measured([group], probe=probe)
    elif probe:
        raise RequestError("--probe needs a model that can be loaded, and plan.shape is none")


def prediction_tree(prediction: "Prediction") -> dict[str, object]:
    """Return what `--json` prints of one configuration."""
    return {
        "metrics": prediction.metrics(),
        "parts": prediction.cohort_parts,
        "cohort": prediction.cohort,
        "device": prediction.device,
        "transient_bytes": prediction.transient_bytes,
        "peak_bytes": prediction.peak_bytes,
    }


def heading(subject: "Subject") -> str:
    """Say in one or two lines what is planned."""
    config, batch = subject.config, subject.batch
    quant, optim = config.quant, config.optim
    targets = ", ".join(config.lora.target_modules)
    checkpointing = ", activations recomputed" if optim.gradient_checkpointing else ""
    processes, shared = config.resources.data_parallel, ""
    if config.resources.shard is not Shard.none:
        on_gpu = " (gathered blocks: as FSDP2's code reads, not measured)"
        shared = f"of the first of {processes} processes, which share the base"
        shared += (on_gpu if subject.device == "cuda" else "") + "\n"
    return (
        f"{subject.model.name}: {label_of(quant)} in blocks of {quant.block_size}, computed in "
        f"{quant.compute_dtype.value}; rank {config.lora.rank} on {targets}; {optim.name.value}\n"
        f"micro-batch {batch.rows} x {batch.length} positions, {batch.loss_tokens} with loss "
        f"({subject.batch_source}){checkpointing}; on {subject.device}\n{shared}"
    )


def fits(prediction: "Prediction", limit: int) -> bool:
    """Say whether a peak and its margin stay within `limit` bytes."""
    from harness.plan.subject import MARGIN

    return prediction.peak_bytes * (1 + MARGIN) <= limit


def largest_cohort(subject: "Subject", limit: int, most: int = MAX_COHORT) -> int:
    """Return how many runs of this configuration fit side by side, at most `most`; 0 if not even one does."""
    fitting, too_many = 0, most + 1
    size = 1
    while fitting + 1 < too_many:
        if fits(subject.predict(size), limit):
            fitting = size
        else:
            too_many = size
        size = min(2 * size, most) if too_many > most else (fitting + too_many) // 2
        if size == fitting:
            break
    return fitting


def fit_text(subject: "Subject", prediction: "Prediction", limit: int) -> str:
    """Say whether it fits, and how large a cohort would."""
    from harness.plan.subject import MARGIN

    needed = format_bytes(round(prediction.peak_bytes * (1 + MARGIN)))
    if not fits(prediction, limit):
        return f"does not fit {format_bytes(limit)}: {needed} with its margin"
    cohort = largest_cohort(subject, limit)
    return f"fits {format_bytes(limit)}; side by side up to {cohort} such runs do" + (
        " (more were not tried)" if cohort == MAX_COHORT else ""
    )
