"""Schedules against transformers' own at every step, early stopping against its rule, alone and not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from harness.config.schema import LoraConfig, OptimConfig, RunConfig, Schedule
from harness.config.validate import validate
from harness.data.order import ends_epochs, steps_for
from harness.errors import RequestError
from harness.records.metrics_log import read_metrics
from harness.records.record import RunStatus, read_record
from harness.training.schedule import is_out_of_patience, learning_rate_factor
from harness.training.session import Queue, train
from harness.training.stop import StopRequest
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import SideBySide

SETTINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("constant", {}, {}),
    ("constant_with_warmup", {}, {}),
    ("linear", {}, {}),
    ("cosine", {}, {}),
    ("cosine", {"schedule_cycles": 1.5}, {"num_cycles": 1.5}),
    ("cosine_with_restarts", {}, {}),
    ("cosine_with_restarts", {"schedule_cycles": 3}, {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr_ratio": 0.1}, {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr_ratio": 0.2}, {"min_lr_rate": 0.2}),
    ("polynomial", {}, {}),
    ("polynomial", {"schedule_power": 2.0, "min_lr_ratio": 0.25}, {"power": 2.0, "lr_end": 5e-4}),
    ("inverse_sqrt", {}, {}),
    (
        "warmup_stable_decay",
        {"decay_steps": 1, "min_lr_ratio": 0.5},
        {"num_decay_steps": 1, "min_lr_ratio": 0.5},
    ),
]
LR = 2e-3


@pytest.mark.parametrize(("name", "ours", "theirs"), SETTINGS, ids=lambda value: str(value))
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (1, 9), (5, 40), (38, 40)])
def test_every_schedule_is_transformers_own_at_every_step(name, ours, theirs, warmup, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    called = "constant_with_warmup" if name == "constant" and warmup else name
    scheduler = get_scheduler(called, optimizer, warmup, steps, theirs)
    config = OptimConfig(lr=LR, schedule=Schedule[name], warmup_steps=warmup, steps=steps, **ours)
    for step in range(steps):
        rate = LR * learning_rate_factor(step, steps, config)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_the_loss_are_theirs_after_every_evaluation(name):
    generator = torch.Generator().manual_seed(0)
    noisy = (3 - torch.arange(60).clamp(max=15) / 10 + torch.rand(60, generator=generator)).tolist()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    kwargs = {"min_lr": LR / 20}
    scheduler = get_scheduler(name, optimizer, scheduler_specific_kwargs=kwargs)
    config = OptimConfig(lr=LR, schedule=Schedule[name], steps=60, min_lr_ratio=0.05)
    seen = set()
    for count, loss in enumerate(noisy):
        rate = LR * learning_rate_factor(count, 60, config, noisy[:count])
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), count
        seen.add(rate)
        scheduler.step(loss)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([], 1, False),
        ([3.0, 2.0, 1.0], 1, False),
        ([3.0, 2.0, 2.0], 1, True),  # as low is not lower
        ([3.0, 2.0, 2.5, 1.9, 2.5, 2.5], 2, True),
        ([3.0, 2.0, 2.5, 1.9, 2.5, 2.5], 3, False),
        ([float("nan"), float("nan")], 2, True),
        ([1.0, 2.0, 3.0, 4.0], None, False),
    ],
)
def test_patience_counts_evaluations_since_the_lowest_loss(losses, patience, stops):
    assert is_out_of_patience(losses, patience) is stops


@pytest.mark.parametrize(
    ("epochs", "every", "rows", "batch"),
    [(3, 1.0, 50, 16), (10, 1.0, 50, 16), (2, 0.5, 44, 4), (4, 1.0, 3, 8), (1, 0.1, 7, 1)],
)
def test_an_epoch_ends_with_the_first_step_that_has_seen_all_its_rows(epochs, every, rows, batch):
    steps = steps_for(epochs, rows, batch)
    ends = [step for step in range(1, steps + 1) if ends_epochs(step, every, rows, batch)]
    wanted = sorted(
        {steps_for(k * every, rows, batch) for k in range(1, round(epochs / every) + 1)}
    )
    assert ends == wanted
    assert ends[-1] == steps


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("optim", {"patience": 2}, ["optim.patience=2", "eval.every_epochs"]),
        ("optim", {"patience": 0}, ["optim.patience=0", "at least 1"]),
        ("optim", {"decay_steps": 3}, ["optim.decay_steps=3", "warmup_stable_decay"]),
        ("optim", {"schedule": Schedule.warmup_stable_decay}, ["needs optim.decay_steps"]),
        ("optim", {"schedule": Schedule.greedy}, ["evaluations on the way"]),
        ("optim", {"schedule": Schedule.polynomial, "lr": 1e-8}, ["optim.min_lr_ratio"]),
        (
            "optim",
            {"schedule": Schedule.cosine_with_restarts, "schedule_cycles": 1.5},
            ["whole number"],
        ),
        ("eval", {"every_epochs": 0.0}, ["eval.every_epochs=0.0", "positive"]),
        ("eval", {"every_epochs": 1.0, "every_steps": 4}, ["say two things"]),
        ("eval", {"keep_best": True}, ["eval.every_epochs"]),
        ("checkpoint", {"every_epochs": -1.0}, ["checkpoint.every_epochs=-1.0"]),
    ],
)
def test_settings_without_effect_are_refused(section, settings, words):
    config = RunConfig(lora=LoraConfig(alpha=8.0), optim=OptimConfig(steps=20))
    setattr(config, section, replace(getattr(config, section), **settings))
    with pytest.raises(RequestError) as refused:
        validate(config)
    assert all(word in str(refused.value) for word in words), refused.value


IMPATIENT: dict[str, Any] = {
    "optim": {"lr": 0.3, "steps": 40, "patience": 2},  # so fast that the loss soon rises again
    "eval": {"every_steps": 2, "keep_best": True},
}


def test_a_run_stops_early_at_the_same_step_alone_and_in_company(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    alone = make_job(shared, "alone", **IMPATIENT)
    list(train(shared, Queue([alone]), sizer=SideBySide(1), stop=StopRequest()))
    jobs = [
        make_job(shared, "patient", seed=1, optim={"steps": 30}),
        make_job(shared, "together", **IMPATIENT),
    ]
    list(train(shared, Queue(jobs), sizer=SideBySide(2), stop=StopRequest()))
    first, patient, second = (read_record(j.directory.record) for j in (alone, *jobs))
    assert first.status is patient.status is second.status is RunStatus.completed
    rows = [read_metrics(job.directory.metrics).rows for job in (alone, jobs[1])]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert len(rows[0]) < 40
    found = [loss for row in rows[0] if (loss := row.get("eval/loss")) is not None]
    best = min(range(len(found)), key=lambda index: found[index])
    assert best == len(found) - 3, "two evaluations after the lowest, and no more"
    note = f"stopped early after step {len(rows[0])} of 40: no lower eval loss in 2 evaluations"
    assert note in first.notes
    assert note in second.notes
    kept = first.evals["after"]["eval/loss"].value
    assert kept == pytest.approx(found[best], abs=1e-6)
    in_company = second.evals["after"]["eval/loss"].value
    assert in_company == pytest.approx(kept, rel=1e-3)  # roundings grow at such a rate
    assert not any("stopped early" in note for note in patient.notes)


def test_evaluations_per_epoch_stand_where_epochs_end(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    settings: dict[str, Any] = {"optim": {"steps": None, "epochs": 2.0}, "data": {"train_rows": 10}}
    job = make_job(shared, "epochs", eval={"every_epochs": 1.0}, **settings)  # of 2.5 steps each
    list(train(shared, Queue([job]), sizer=SideBySide(1), stop=StopRequest()))
    rows = read_metrics(job.directory.metrics).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 5]
