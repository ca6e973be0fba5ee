"""Slots from outside: refilled when work comes, pruned, evaluated together, short of memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from harness.config.schema import CheckpointConfig, LoraConfig, QuantConfig, QuantFormat
from harness.engine.shared_base import SharedBase
from harness.records.metrics_log import read_metrics
from harness.records.record import MeasuredIn, Record, RunStatus, read_record
from harness.training import evaluation, passes, session
from harness.training.job import Job
from harness.training.pass_size import PassSizer
from harness.training.session import Event, Queue, RunEnded, RunStarted, StepDone, train
from harness.training.stop import StopRequest
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import Restless, SideBySide

CLOSE = 1e-6


def losses(job: Job) -> list[float]:
    return [row["train/loss"] for row in read_metrics(job.directory.metrics).rows]  # pyright: ignore[reportReturnType]


def run_all(shared: SharedBase, jobs: list[Job], sizer: PassSizer) -> dict[str, Record]:
    events = train(shared, Queue(jobs), sizer=sizer, stop=StopRequest())
    return {e.record.run_id: e.record for e in events if isinstance(e, RunEnded)}


def runs(shared: SharedBase, make_job: MakeJob, prefix: str, count: int, **more: Any) -> list[Job]:
    """Return runs of two ranks that differ in seed and rate, two steps longer every second time."""
    return [
        make_job(
            shared,
            f"{prefix}{i}",
            seed=i,
            lora=LoraConfig(rank=[4, 8][i % 2], alpha_over_rank=2.0),
            **{"optim": {"lr": 1e-3 * (i + 1), "steps": 5 + 2 * (i % 2)}, **more},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("sizer", [Restless(4), PassSizer(max_slots=4)], ids=["restless", "timed"])
def test_whichever_runs_share_a_pass_each_is_as_alone(
    make_base: MakeBase, make_job: MakeJob, sizer: PassSizer
) -> None:
    shared = make_base(QuantConfig(format=QuantFormat.nf4))
    alone = runs(shared, make_job, "alone", 6)
    for job in alone:
        run_all(shared, [job], SideBySide(1))
    together = runs(shared, make_job, "together", 6, optim={"steps": 7, "micro_batch_size": 2})
    for one, other in zip(alone, together, strict=True):
        other.config.optim = one.config.optim
    run_all(shared, together, sizer)
    for one, other in zip(alone, together, strict=True):
        assert losses(other) == pytest.approx(losses(one), abs=CLOSE)


# Work that comes and goes ------------------------------------------------------------------------


@dataclass
class LateJobs:
    """Has its second job only after a while, and gives up what it is told to."""

    jobs: list[Job]
    empty_answers: int = 0
    asked: int = 0
    given_up: dict[str, str] = field(default_factory=dict)

    def take(self) -> Job | None:
        self.asked += 1
        if len(self.jobs) == 1 and self.empty_answers > 0:
            self.empty_answers -= 1
            return None
        return self.jobs.pop(0) if self.jobs else None

    def pruned(self, run_id: str) -> str | None:
        return self.given_up.pop(run_id, None)


def test_a_desk_without_work_is_asked_again_and_its_run_joins_the_others(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    first, second = runs(shared, make_job, "run", 2)
    jobs = LateJobs([first, second], empty_answers=3)
    story = list(train(shared, jobs, sizer=SideBySide(2), stop=StopRequest()))
    told = [(type(event).__name__, event.entry.job.run_id) for event in story]
    assert told[:4] == [("RunStarted", "run0"), *[("StepDone", "run0")] * 3]
    assert told[4:7] == [("RunStarted", "run1"), ("StepDone", "run0"), ("StepDone", "run1")]
    assert [run_id for name, run_id in told if name == "RunEnded"] == ["run0", "run1"]
    assert jobs.asked > 6


def test_a_session_ends_when_its_runs_have_and_the_desk_has_none(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    jobs = LateJobs(runs(shared, make_job, "run", 1))
    ended = list(train(shared, jobs, sizer=SideBySide(2), stop=StopRequest()))
    assert isinstance(ended[-1], RunEnded)


def pruning(shared: SharedBase, jobs: LateJobs, run_id: str, after: int) -> Iterator[Event]:
    """Train, and give up one run when so many of its steps are done."""
    for event in train(shared, jobs, sizer=SideBySide(4), stop=StopRequest()):
        is_step = isinstance(event, StepDone) and event.entry.job.run_id == run_id
        if is_step and event.entry.slot.progress.step == after:
            jobs.given_up[run_id] = "worse than the median"
        yield event


def test_a_pruned_run_ends_after_its_step_and_the_others_go_on(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    clean = runs(shared, make_job, "clean", 3)
    run_all(shared, clean, SideBySide(4))
    settings = {"checkpoint": CheckpointConfig(every_steps=1), "eval": {"every_steps": 1}}
    jobs = runs(shared, make_job, "pruned", 3, **settings)
    list(pruning(shared, LateJobs(list(jobs)), "pruned1", after=3))
    record = read_record(jobs[1].directory.record)
    assert (record.status, record.error) == (RunStatus.pruned, None)
    assert record.notes == ["pruned after step 3: worse than the median"]
    assert record.metrics["train/loss"] == losses(jobs[1])[-1]
    assert "before" in record.evals
    assert "after" not in record.evals
    assert losses(jobs[1]) == pytest.approx(losses(clean[1])[:3], abs=CLOSE)
    assert not jobs[1].directory.adapter.exists()
    assert not jobs[1].directory.checkpoint.exists()
    for one, other in ((clean[0], jobs[0]), (clean[2], jobs[2])):
        assert read_record(other.directory.record).status is RunStatus.completed
        assert losses(other) == pytest.approx(losses(one), abs=CLOSE)


def test_a_run_that_was_pruned_is_trained_from_its_beginning_when_asked_for_again(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    (whole,) = runs(shared, make_job, "whole", 1)
    run_all(shared, [whole], SideBySide(1))
    settings = {"checkpoint": CheckpointConfig(every_steps=1)}
    list(pruning(shared, LateJobs(runs(shared, make_job, "run", 1, **settings)), "run0", after=2))
    (again,) = runs(shared, make_job, "run", 1)
    assert run_all(shared, [again], SideBySide(1))["run0"].status is RunStatus.completed
    steps = [row["step"] for row in read_metrics(again.directory.metrics).rows]
    assert steps == [1, 2, 3, 4, 5]
    assert losses(again) == losses(whole)
    assert read_record(again.directory.record).notes == []


def test_a_step_of_several_passes_is_finished_before_a_run_is_given_up(
    make_base: MakeBase, make_job: MakeJob
) -> None:
    shared = make_base()
    (job,) = runs(shared, make_job, "run", 1, optim={"micro_batch_size": 1, "steps": 5})
    jobs = LateJobs([job])
    for event in train(shared, jobs, sizer=SideBySide(1), stop=StopRequest()):
        if isinstance(event, RunStarted):
            jobs.given_up["run0"] = "at once"
    assert read_record(job.directory.record).notes == ["pruned after step 0: at once"]


def test_what_a_probe_costs_is_marked_as_a_probes(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    job = make_job(shared, "probe")
    job.is_probe = True
    assert run_all(shared, [job], SideBySide(1))["probe"].measured_in is MeasuredIn.probe
    pair = [make_job(shared, "one"), make_job(shared, "two", seed=1)]
    pair[0].is_probe = True
    assert run_all(shared, pair, SideBySide(2))["one"].measured_in is MeasuredIn.cohort


# Evaluation --------------------------------------------------------------------------------------

GENERATING = {"generate": True, "generate_rows": 6, "max_new_tokens": 6, "every_steps": 2}


def test_evaluations_side_by_side_are_those_of_the_runs_alone(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base(QuantConfig(format=QuantFormat.nf4))
    alone = runs(shared, make_job, "alone", 4, eval=GENERATING)
    for job in alone:
        run_all(shared, [job], SideBySide(1))
    counts = counted_copies(monkeypatch)
    together = runs(shared, make_job, "together", 4, eval=GENERATING)
    run_all(shared, together, SideBySide(4))
    assert max(counts) == 4
    assert counts[-2:] == [2, 2]  # two runs are longer than the other two
    for one, other in zip(alone, together, strict=True):
        assert_same_results(one, other)


def counted_copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will hold the number of copies of every evaluation."""
    real, counts = evaluation.evaluate_copies, []

    def counting(*arguments: Any, **more: Any) -> Any:
        counts.append(more["copies"].count)
        return real(*arguments, **more)

    monkeypatch.setattr(evaluation, "evaluate_copies", counting)
    return counts


def assert_same_results(one: Job, other: Job) -> None:
    first, second = (read_metrics(job.directory.metrics).rows for job in (one, other))
    assert [row.get("eval/loss") for row in first] == pytest.approx(
        [row.get("eval/loss") for row in second], abs=CLOSE
    )
    evals = [read_record(job.directory.record).evals for job in (one, other)]
    for phase in ("before", "after"):
        values = [{k: e.value for k, e in each[phase].items()} for each in evals]
        assert {"eval/loss", "eval/exact_match"} <= values[0].keys()
        assert values[0] == pytest.approx(values[1], rel=CLOSE)


def test_an_evaluation_that_fails_is_its_own_runs_failure(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    jobs = runs(shared, make_job, "run", 3, optim={"steps": 3}, eval={"before": False})
    real = evaluation._evaluate

    def failing(base: SharedBase, entries: Any, **more: Any) -> Any:
        if any(entry.job.run_id == "run1" for entry in entries):
            raise ValueError("not this one")
        return real(base, entries, **more)

    monkeypatch.setattr(evaluation, "_evaluate", failing)
    records = run_all(shared, jobs, SideBySide(3))
    statuses = [records[f"run{i}"].status for i in range(3)]
    assert statuses == [RunStatus.completed, RunStatus.failed, RunStatus.completed]
    assert records["run1"].error == "ValueError: not this one"


def test_the_untouched_base_is_evaluated_once_for_all_sessions(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    counts = counted_copies(monkeypatch)
    records = [
        run_all(shared, [job], SideBySide(1))[job.run_id]
        for job in runs(shared, make_job, "run", 2)
    ]
    assert len(counts) == 3
    assert records[0].evals["before"] == records[1].evals["before"]


def test_the_last_evaluation_is_the_results(make_base: MakeBase, make_job: MakeJob) -> None:
    shared = make_base()
    job = make_job(shared, "run", eval={"every_steps": 3})
    record = run_all(shared, [job], SideBySide(1))["run"]
    rows = read_metrics(job.directory.metrics).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6]
    assert rows[-1]["eval/loss"] == record.evals["after"]["eval/loss"].value


# Memory ------------------------------------------------------------------------------------------


def room_for(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a pass of more rows run out of memory; returns a list that will hold each pass's rows."""
    real, seen = passes.Ranks.gradients, []

    def limited(ranks: passes.Ranks, base: SharedBase, slots: Any, work: Any) -> Any:
        total = sum(item.batch.input_ids_BT.shape[0] for item in work)
        if total > rows:
            raise torch.OutOfMemoryError("no room")
        seen.append(total)
        return real(ranks, base, slots, work)

    monkeypatch.setattr(passes.Ranks, "gradients", limited)
    return seen


@pytest.mark.parametrize(("rows", "micro"), [(12, 6), (4, 3), (2, 1)])
def test_out_of_memory_alone_divides_the_micro_batch_and_keeps_the_batch(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, rows: int, micro: int
) -> None:
    shared = make_base()
    optim = {"batch_size": 12, "micro_batch_size": 6, "steps": 4}
    whole = make_job(shared, "whole", optim=optim)
    run_all(shared, [whole], SideBySide(1))
    seen = room_for(rows, monkeypatch)
    divided = make_job(shared, "divided", optim=optim)
    record = run_all(shared, [divided], SideBySide(1))["divided"]
    assert record.status is RunStatus.completed
    assert seen == [micro] * (4 * 12 // micro)
    assert losses(divided) == pytest.approx(losses(whole), abs=5e-6)
    notes = [note for note in record.notes if "micro-batch" in note]
    assert len(notes) == {6: 0, 3: 1, 1: 2}[micro]
    if notes:
        assert notes[-1].endswith(f"went on with {micro} (the same batch)")


def test_the_cohort_is_divided_first_then_the_micro_batch(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    jobs = runs(shared, make_job, "run", 4, optim={"steps": 3})
    seen = room_for(2, monkeypatch)
    records = run_all(shared, jobs, SideBySide(4))
    assert {record.status for record in records.values()} == {RunStatus.completed}
    notes = records["run0"].notes
    assert [note.split(";")[0] for note in notes] == [
        "out of memory with 4 runs in a pass",
        "out of memory with 2 runs in a pass",
        "out of memory with a micro-batch of 4 rows",
    ]
    assert set(seen) == {2}


def test_one_row_that_does_not_fit_is_a_result(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    room_for(0, monkeypatch)
    (record,) = run_all(shared, [make_job(shared, "run")], SideBySide(1)).values()
    assert (record.status, record.error) == (RunStatus.out_of_memory, "no room")


def fails_beside(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run that starts beside so many others, or more, run out of memory."""
    real: Callable[[Any], None] = session.RunEntry.start
    started: list[Any] = []

    def start(entry: Any) -> None:
        alive = [e for e in started if e.job.directory.adapter.exists() is False]
        if len(alive) >= others:
            raise torch.OutOfMemoryError("no room")
        real(entry)
        started.append(entry)

    monkeypatch.setattr(session.RunEntry, "start", start)


def test_a_run_that_does_not_fit_beside_the_others_waits_for_one_to_end(
    make_base: MakeBase, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_base()
    jobs = runs(shared, make_job, "run", 4)
    fails_beside(2, monkeypatch)
    records = run_all(shared, jobs, SideBySide(4))
    assert {record.status for record in records.values()} == {RunStatus.completed}
    assert len(records) == 4
    assert records["run2"].notes == ["out of memory beside 2 runs; waited for one to end"]
