"""Captured steps, uncaptured on a CPU: seats, buckets and the written-out pass give the reference's
curves."""

import signal
from collections.abc import Sequence

import pytest
import torch

from harness.config.resources import BackendName
from harness.config.schema import LoraConfig, OptimizerName, QuantConfig, QuantFormat
from harness.engine.cuda.backend import CudaBackend
from harness.engine.micro_step import Work
from harness.engine.shared_base import SharedBase
from harness.records.answers import read_answers
from harness.records.record import Record, RunStatus
from harness.training.job import Job
from harness.training.session import Event, Queue, RunEnded, StepDone, train
from harness.training.stop import StopRequest
from tests.training.conftest import MakeBase, MakeJob
from tests.training.side_by_side import SideBySide
from tests.training.test_same_as_alone import losses, worst

CLOSE = 2e-6
STEPS = 6


@pytest.fixture
def bases(make_base: MakeBase) -> list[SharedBase]:
    """A base twice: computed by the reference, and in seats."""
    quant = QuantConfig(format=QuantFormat.nf4, double_quant=True)
    made = [make_base(quant, backend=BackendName.reference) for _ in range(2)]
    made[1].backend = CudaBackend(made[1])
    return made


def unlike_runs(shared: SharedBase, make_job: MakeJob, prefix: str, count: int = 5) -> list[Job]:
    """Runs that differ in rank, targets, dropout, micro-batches, length and clipping."""
    targets = (["all_linear"], ["q_proj", "v_proj"], ["mlp"], ["attention"], ["down_proj"])
    return [
        make_job(
            shared,
            f"{prefix}{i}",
            lora=LoraConfig(
                rank=(8, 2, 20, 4, 1)[i],
                alpha=(16.0, 3.0, 20.0, 4.0, 2.0)[i],
                dropout=(0.0, 0.2, 0.0, 0.0, 0.1)[i],
                target_modules=targets[i],
            ),
            optim={
                "lr": (1e-3, 2e-4, 4e-4, 1.6e-3, 1e-3)[i],
                "steps": STEPS + (i % 3),
                "micro_batch_size": (4, 2, 1, 4, 2)[i],
                "weight_decay": (0.0, 0.1, 0.0, 0.0, 0.01)[i],
                "max_grad_norm": (0.3, None, 0.3, 1.0, 0.3)[i],
                "loraplus_ratio": (1.0, 4.0, 1.0, 1.0, 2.0)[i],
            },
            seed=i,
        )
        for i in range(count)
    ]


def run_all(shared: SharedBase, jobs: Sequence[Job], slots: int) -> dict[str, Record]:
    events = list(train(shared, Queue(jobs), sizer=SideBySide(slots), stop=StopRequest()))
    return {e.record.run_id: e.record for e in events if isinstance(e, RunEnded)}


def test_runs_that_take_each_others_seats_have_the_references_curves(
    bases: list[SharedBase], make_job: MakeJob
) -> None:
    reference, seated = bases
    alone = unlike_runs(reference, make_job, "alone")
    run_all(reference, alone, slots=1)
    together = unlike_runs(seated, make_job, "seated")
    records = run_all(seated, together, slots=3)
    for one, other in zip(alone, together, strict=True):
        assert records[other.run_id].status is RunStatus.completed
        assert records[other.run_id].provenance["backend"] == "cuda"
        assert worst(losses(one), losses(other)) < CLOSE


def test_the_adapter_that_is_saved_is_the_seats(bases: list[SharedBase], make_job: MakeJob) -> None:
    from safetensors.torch import load_file

    jobs = [
        unlike_runs(base, make_job, name, count=1)[0]
        for base, name in zip(bases, "rs", strict=True)
    ]
    found = []
    for base, job in zip(bases, jobs, strict=True):
        run_all(base, [job], slots=1)
        found.append(load_file(job.directory.adapter / "adapter_model.safetensors"))
    one, other = (torch.cat([each[key].flatten() for key in sorted(each)]) for each in found)
    assert (
        one - other
    ).norm() < 1e-5 * one.norm()  # Adam turns a rounding of a small gradient into a step


def test_a_run_that_diverges_leaves_its_neighbours_alone(
    bases: list[SharedBase], make_job: MakeJob
) -> None:
    seated = bases[1]
    clean = unlike_runs(seated, make_job, "clean", count=3)
    run_all(seated, clean, slots=3)
    dirty = unlike_runs(seated, make_job, "dirty", count=3)
    dirty[1].config.optim.lr = 1e30
    dirty[1].config.optim.max_grad_norm = None
    records = run_all(seated, dirty, slots=3)
    assert records["dirty1"].status is RunStatus.diverged
    for i in (0, 2):
        assert worst(losses(clean[i]), losses(dirty[i])) < CLOSE


def test_a_run_goes_on_from_a_seats_checkpoint(bases: list[SharedBase], make_job: MakeJob) -> None:
    seated = bases[1]
    whole = unlike_runs(seated, make_job, "whole", count=2)
    run_all(seated, whole, slots=2)
    parts = unlike_runs(seated, make_job, "parts", count=2)
    stop = StopRequest()
    for event in train(seated, Queue(parts), sizer=SideBySide(2), stop=stop):
        if isinstance(event, StepDone) and event.entry.slot.progress.step == 3:
            stop.signal = signal.SIGTERM
    again = unlike_runs(seated, make_job, "parts", count=2)
    records = run_all(seated, again, slots=2)
    for one, other in zip(whole, again, strict=True):
        assert records[other.run_id].status is RunStatus.completed
        assert worst(losses(one), losses(other)) < CLOSE


def test_a_pruned_runs_seat_goes_to_the_next(bases: list[SharedBase], make_job: MakeJob) -> None:
    seated = bases[1]
    jobs = unlike_runs(seated, make_job, "run", count=4)

    class Pruning(Queue):
        def pruned(self, run_id: str) -> str | None:
            return "enough" if run_id == "run0" and steps.get("run0", 0) >= 2 else None

    steps: dict[str, int] = {}
    events: list[Event] = []
    for event in train(seated, Pruning(jobs), sizer=SideBySide(2), stop=StopRequest()):
        events.append(event)
        if isinstance(event, StepDone):
            steps[event.entry.job.run_id] = event.entry.slot.progress.step
    ended = {e.record.run_id: e.record.status for e in events if isinstance(e, RunEnded)}
    assert ended.pop("run0") is RunStatus.pruned
    assert set(ended.values()) == {RunStatus.completed}
    alone = unlike_runs(bases[0], make_job, "alone", count=4)
    run_all(bases[0], alone, slots=1)
    for one, other in zip(alone[1:], jobs[1:], strict=True):
        assert worst(losses(one), losses(other)) < CLOSE


def test_optimizers_that_keep_their_own_state_are_moved_by_it(
    bases: list[SharedBase], make_job: MakeJob
) -> None:
    curves = []
    for base, name in zip(bases, ("reference", "seated"), strict=True):
        job = make_job(base, name, optim={"name": OptimizerName.adamw_8bit, "steps": 4})
        run_all(base, [job], slots=1)
        curves.append(losses(job))
    assert curves[0] == curves[1]


def test_evaluations_in_seats_are_the_references(
    bases: list[SharedBase], make_job: MakeJob
) -> None:
    """Losses and token accuracy of runs side by side, in passes that only score; the best adapter too."""
    found = []
    for base, name in zip(bases, ("reference", "seated"), strict=True):
        jobs = unlike_runs(base, make_job, name, count=3)
        for job in jobs:
            job.config.eval.every_steps = 2
            job.config.eval.keep_best = True
        records = run_all(base, jobs, slots=3)
        found.append([records[job.run_id].evals["after"] for job in jobs])
        series = [job.directory.metrics.read_text().count("eval/loss") for job in jobs]
        assert min(series) >= 3
    backend = bases[1].backend
    assert isinstance(backend, CudaBackend)
    assert any(scores for _, scores in backend._graphs)
    for expected, scored in zip(*found, strict=True):
        assert scored["eval/loss"].value == pytest.approx(expected["eval/loss"].value, abs=1e-5)
        for key in ("eval/token_accuracy", "eval/bits_per_byte"):
            assert scored[key].value == pytest.approx(expected[key].value, abs=1e-4)
            assert scored[key].n == expected[key].n


def test_the_device_has_the_next_pass_before_a_steps_numbers_are_read(
    bases: list[SharedBase], make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the curves stay the reference's, through evaluations, runs that end, and others that begin."""
    replayed = []
    replay = CudaBackend.replay

    def watched(backend: CudaBackend, work: Sequence[Work]) -> bool:
        replayed.append(replay(backend, work))
        return replayed[-1]

    monkeypatch.setattr(CudaBackend, "replay", watched)
    curves = []
    for base, name in zip(bases, ("reference", "seated"), strict=True):
        jobs = unlike_runs(base, make_job, name, count=4)
        for job in jobs:
            job.config.optim.micro_batch_size = 4
            job.config.eval.every_steps = 3
        run_all(base, jobs, slots=1 if name == "reference" else 2)
        curves.append([losses(job) for job in jobs])
    assert sum(replayed) >= 2  # how often depends on who sits where
    for one, other in zip(*curves, strict=True):
        assert worst(one, other) < CLOSE


def test_answers_in_seats_are_the_references(
    bases: list[SharedBase], make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers of unlike runs together: prompts of unlike length, more of them than a batch has."""
    found = []
    for base, name in zip(bases, ("reference", "seated"), strict=True):
        jobs = unlike_runs(base, make_job, name, count=3)
        for job in jobs:
            job.config.optim.lr *= 5  # so that each run has answers of its own
            job.config.eval.generate = True
            job.config.eval.generate_rows = 5
            job.config.eval.batch_size = 3
            job.config.eval.max_new_tokens = 20
        if name == "seated":
            monkeypatch.setattr(type(base.model), "generate", None)  # nobody asks the model
            base.untouched_results = bases[0].untouched_results
        records = run_all(base, jobs, slots=3)
        assert {record.status for record in records.values()} == {RunStatus.completed}
        found.append([[a.answer for a in read_answers(job.directory.answers)][-5:] for job in jobs])
    assert found[0] == found[1]
    assert len({answer for answers in found[0] for answer in answers}) > 5


def test_optimizers_of_their_own_are_evaluated_by_the_reference(
    bases: list[SharedBase], make_job: MakeJob
) -> None:
    seated = bases[1]
    job = make_job(seated, "own", optim={"name": OptimizerName.adamw_8bit, "steps": 2})
    records = run_all(seated, [job], slots=1)
    assert records["own"].status is RunStatus.completed
    assert isinstance(seated.backend, CudaBackend)
    assert not seated.backend._graphs
