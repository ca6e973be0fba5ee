"""`harness plan`: what a run or a sweep would need, from the configuration alone; nothing is trained."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.base.quick_imports import quick_imports
from harness.config.compose import compose_run
from harness.config.resources import Shard
from harness.config.schema import RunConfig
from harness.config.storage import has_blocks, label_of
from harness.errors import RequestError
from harness.plan.settings import PlanSettings, parse_bytes, split_settings, with_device_defaults

if TYPE_CHECKING:
    from harness.plan.costs import CostGroup
    from harness.plan.subject import Subject


def plan_command(
    words: Sequence[str], *, budget: str | None, explain: bool, probe: bool, as_json: bool
) -> int:
    """Print the plan of a run, or of the sweep that the first word names; returns the exit code."""
    limit = None if budget is None else parse_bytes(budget, "--budget")
    settings, overrides = split_settings(words)
    if settings.ranks is not None:
        raise RequestError(f"plan.ranks={settings.ranks} would be ignored without --table")
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
    from harness.plan.fit import fit_text
    from harness.plan.subject import MARGIN, subject_of
    from harness.plan.text import base_text, duration, prediction_text

    subject = subject_of(config, settings)
    prediction = subject.predict(settings.cohort)
    group = CostGroup(configs=[config], points=[{}], subject=subject)
    group.step_seconds = stated_step_seconds(group, settings)
    _measure(group, settings, probe=probe)
    if as_json:
        tree = prediction.tree()
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
            model = subject.model
            print(
                explanation(prediction, config, model.storage, model.linears, subject.batch), end=""
            )
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


def _stored(subject: "Subject") -> str:
    """Say how the base is stored."""
    quant, stored = subject.config.quant, subject.model.stored
    if stored is not None:
        return f"as it came ({stored.label})"
    blocks = f" in blocks of {quant.block_size}" if has_blocks(quant.format) else ""
    return f"{label_of(quant)}{blocks}"


def heading(subject: "Subject") -> str:
    """Say in one or two lines what is planned."""
    config, batch = subject.config, subject.batch
    quant, optim = config.quant, config.optim
    trained = f"rank {config.lora.rank} on {', '.join(config.lora.target_modules)}"
    if config.lora.trains_all:
        trained = "full fine-tuning, alone on its own copy of the weights"
    checkpointing = ", activations recomputed" if optim.gradient_checkpointing else ""
    checkpointing += " from inputs on the host" if optim.offload_activations else ""
    processes, shared = config.resources.data_parallel, ""
    if config.resources.shard is not Shard.none:
        on_gpu = " (gathered blocks: as FSDP2's code reads, not measured)"
        shared = f"of the first of {processes} processes, which share the base"
        shared += (on_gpu if subject.device == "cuda" else "") + "\n"
    return (
        f"{subject.model.name}: {_stored(subject)}, computed in "
        f"{quant.compute_dtype.value}; {trained}; {optim.name.value}\n"
        f"micro-batch {batch.rows} x {batch.length} positions, {batch.loss_tokens} with loss "
        f"({subject.batch_source}){checkpointing}; on {subject.device}\n{shared}"
    )
