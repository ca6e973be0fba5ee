"""One run in a session: its slot, its record, its metrics and tracker; everything that is written to disk."""

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from harness.base.coverage import Coverage, coverage
from harness.config.compose import config_tree
from harness.config.devices import resolved_device
from harness.config.resources import BackendName
from harness.data.order import ends_epochs
from harness.engine.cuda.backend import why_not_captured
from harness.engine.shared_base import SharedBase
from harness.errors import first_line
from harness.evals.base_domain import BITS, FORGETTING, forgetting
from harness.evals.evaluate import Results, tasks_note
from harness.measure.floor import StepSize, step_floor
from harness.measure.memory import distinct_bytes
from harness.measure.meter import meter_of
from harness.measure.paging import PagingCounters, PagingUnknown, paging_counters
from harness.measure.rates import rates_of
from harness.measure.series import StepCosts
from harness.measure.work import Work, work_of
from harness.plan.batch import WINDOW_STEPS
from harness.plan.subject import predicted_run
from harness.records.answers import keep_answers, read_answers
from harness.records.columns import make_columns
from harness.records.metrics import MEMORY_PARTS, memory_part_name
from harness.records.metrics_log import MetricsLog, read_metrics
from harness.records.record import (
    RESUMED,
    Estimate,
    MeasuredIn,
    Record,
    RunStatus,
    take_costs,
    write_record,
)
from harness.records.scores import RowScores, keep_scores, read_scores
from harness.tracking import open_tracker
from harness.training.checkpoint import (
    Progress,
    load_newest_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from harness.training.job import Job
from harness.training.launch import cache_directory
from harness.training.slot import Slot

if TYPE_CHECKING:
    from harness.plan.prediction import Prediction


def record_without_base(job: Job, error: BaseException) -> Record:
    """Write and return the record of a run whose base did not fit into memory."""
    device = torch.device(resolved_device(job.config.resources.device))
    record = Record(
        run_id=job.run_id,
        status=RunStatus.out_of_memory,
        config=config_tree(job.config),
        metrics={"memory/load_peak_bytes": meter_of(device).read()},
        provenance=job.provenance,
        error=f"while loading the base: {first_line(error)}",
        notes=job.notes,
    )
    job.directory.write_config(record.config)
    write_record(job.directory.record, record)
    return record


class RunEntry:
    """A run from its first record to its last."""

    def __init__(self, job: Job, shared: SharedBase) -> None:
        self.job = job
        self.shared = shared
        self.meter = meter_of(shared.base.device)
        self.loss = self.grad_norm = float("nan")
        self.evals: dict[str, dict[str, Estimate]] = {}
        """Results `before` and `after` training, as far as they are known."""
        self.shared_process = False
        """Whether another run ever trained beside this one: then its costs are not its own."""
        self._began = self._kept_at = time.monotonic()
        self._earlier_seconds = 0.0
        self._slot: Slot | None = None
        self.costs = StepCosts()
        self._paging: tuple[PagingCounters, int] | None = None
        """What counts paged bytes, and what it had counted before this run."""
        self.num_processes = 1
        """How many share the run's rows."""
        self._train_peak = self._eval_peak = self._optimizer_bytes = 0
        self._record = Record(
            run_id=job.run_id,
            status=RunStatus.running,
            config=config_tree(job.config),
            provenance=job.provenance,
            notes=job.notes,
        )
        job.directory.write_config(self._record.config)
        write_record(job.directory.record, self._record)
        self._metrics = MetricsLog(job.directory.metrics)
        self._tracker = open_tracker(
            job.config.tracker,
            run_id=job.run_id,
            directory=job.directory.path,
            config_tree=self._record.config,
            is_probe=job.is_probe,
        )

    @property
    def slot(self) -> Slot:
        """The run's place in the cohort; it has one from `start` on."""
        assert self._slot is not None, "not started"
        return self._slot

    @property
    def coverage(self) -> Coverage:
        """How much of the blocks is packed, and how much the run adapts."""
        return coverage(self.job.config, self.shared.base.linears, self.shared.uncovered)

    def start(self) -> None:
        """Attach the adapter and go on from the newest sound checkpoint, if there is one."""
        self._slot = Slot(self.job, self.shared)
        self._record.provenance["backend"] = self._backend().value
        self._tell_why_not_captured()
        checkpoint, notes = load_newest_checkpoint(
            self.job.directory.checkpoint, self.job.run_id, self.shared.base.device
        )
        for note in notes:
            self.note(note)
        if checkpoint is not None:
            self.slot.restore(checkpoint)
            self._earlier_seconds = checkpoint.progress.wall_seconds
            if checkpoint.progress.before is not None:
                before = checkpoint.progress.before.items()
                self.evals["before"] = {k: Estimate(**v) for k, v in before}  # pyright: ignore[reportArgumentType]
            self.note(f"{RESUMED} {checkpoint.progress.step}")
        self._metrics.truncate_after(self.slot.progress.step)
        if checkpoint is not None:
            self._tracker.log_earlier(read_metrics(self.job.directory.metrics).rows)
        if self.job.config.optim.name.is_paged:
            self._begin_paging()
        if not self.shared_process:
            self.meter.begin()

    def _begin_paging(self) -> None:
        """Count what is paged from now on, where something counts it."""
        try:
            counters = paging_counters(self.shared.base.device)
            self._paging = counters, counters.moved_bytes()
        except PagingUnknown as unknown:
            self.note(f"what is paged is not counted: {unknown}")

    def _backend(self) -> BackendName:
        """Return who computes this run's passes: captured steps are for one process, and for AdamW."""
        name = self.shared.backend.name
        if name is not BackendName.cuda or (self.num_processes == 1 and self.slot.can_be_captured):
            return name
        return BackendName.reference

    def _tell_why_not_captured(self) -> None:
        """Say why the reference computes a run on a base whose other runs are captured."""
        reason = why_not_captured(self.job.config)
        if self.shared.backend.name is BackendName.cuda and reason is not None:
            self.note(f"computed by the reference backend, not in captured steps: {reason}")

    def note(self, text: str) -> None:
        """Add a remark to the record, once."""
        if text not in self.job.notes:
            self.job.notes.append(text)
            self.job.directory.append_log(text)

    def note_early_stop(self) -> None:
        """Say in the record that the run has made fewer steps than it might."""
        slot, patience = self.slot, self.job.config.optim.patience
        self.note(
            f"stopped early after step {slot.progress.step} of {slot.total_steps}: no lower eval loss in "
            f"{patience} evaluations"
        )

    # While training ------------------------------------------------------------------------------

    @cached_property
    def _work(self) -> Work:
        trains_all = self.job.config.lora.trains_all
        adapter = 0 if trains_all else self.slot.adapter.num_parameters
        params, devices = self.shared.size.logical_params, self.num_processes
        return work_of(self.shared.base, params, adapter, devices, trains_all=trains_all)

    @property
    def lasting_bytes(self) -> int:
        """Bytes of this run that last between steps: adapter, gradient, optimizer."""
        if self._slot is None:
            return 0
        if not self._optimizer_bytes:  # some make their state in the first step
            self._optimizer_bytes = distinct_bytes(self._slot.optimizer.tensors())
        adapter = self._slot.adapter
        return adapter.num_bytes + adapter.gradient_bytes + self._optimizer_bytes

    def step_values(self, lasting_bytes: int) -> dict[str, float]:
        """Return the metrics of the step just computed, before it is applied.

        `lasting_bytes` of all runs in the process.
        """
        held = self.shared.size.total_bytes + lasting_bytes
        batch_size, rows = self.job.config.optim.batch_size, len(self.job.data.train)
        scale = self.slot.progress.loss_scale
        return {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.slot.learning_rate,
            **({} if scale is None else {"train/loss_scale": scale.value}),
            "train/epoch": (self.slot.progress.step + 1) * batch_size / rows,
            **self.costs.end_step(self.slot.clock, held, self._work),
        }

    def keep_results(self, phase: Literal["before", "after"], results: Results) -> None:
        """Keep the results of the evaluation before or after training, and what its rows say."""
        self.evals[phase] = dict(results)
        if results.answers:
            step = self.slot.progress.step if phase == "after" else 0
            keep_answers(self.job.directory.answers, phase, step, results.answers)
        keep_scores(self.job.directory.scores, phase, results.scores)
        if results.tasks is not None:
            self._record.provenance.setdefault("lm_eval", {})[phase] = dict(results.tasks)
            self.note(tasks_note(phase, results.tasks))

    def tell_forgetting(self, results: Results) -> None:
        """Add what the run has forgotten of its base's domain since the evaluation before training."""
        after = results.scores.get(BITS)
        if after is None:
            return
        before = read_scores(self.job.directory.scores, "before").get(BITS)
        found = None if before is None else forgetting(before, after)
        if found is not None:
            results[FORGETTING], results.scores[FORGETTING] = found

    def final_values(self, values: dict[str, float]) -> dict[str, float]:
        """Return what the evaluation after training adds to the last step's `values`.

        Nothing where the adapter that is kept is another step's.
        """
        if self.slot.best_adapter is not None:
            return {}
        after = self.evals.get("after", {})
        return {name: result.value for name, result in after.items() if name not in values}

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one step's metrics to disk and to the tracker."""
        self._metrics.log(step, values)
        self._tracker.log(step, values)

    def evaluation_is_due(self) -> bool:
        """Whether the loss is to be evaluated after the step just made."""
        asked, step = self.job.config.eval, self.slot.progress.step
        if not asked.goes_on:
            return False
        if self.slot.finished and asked.keep_best:
            return True
        return self._ends(asked.every_steps, asked.every_epochs, step)

    def _ends(self, steps: int | None, epochs: float | None, step: int) -> bool:
        """Say whether `step` ends a stretch of so many steps, or of so many epochs."""
        if steps is not None:
            return step % steps == 0
        rows, batch_size = len(self.job.data.train), self.job.config.optim.batch_size
        return epochs is not None and ends_epochs(step, epochs, rows, batch_size)

    def checkpoint_is_due(self) -> bool:
        """Whether enough steps or seconds have passed since the last checkpoint."""
        config = self.job.config.checkpoint
        waited = time.monotonic() - self._kept_at
        return self._ends(config.every_steps, config.every_epochs, self.slot.progress.step) or (
            config.every_seconds is not None and waited >= config.every_seconds
        )

    def save_checkpoint(self) -> None:
        """Keep everything needed to go on from here; the metrics up to here are on disk first."""
        self._metrics.sync()
        progress = self.slot.progress
        progress.wall_seconds = self._wall_seconds()
        if "before" in self.evals:
            progress.before = {
                name: {"value": e.value, "standard_error": e.standard_error, "n": e.n}
                for name, e in self.evals["before"].items()
            }
        save_checkpoint(
            self.job.directory.checkpoint, self.slot.checkpoint(), self.job.config.checkpoint.keep
        )
        self._kept_at = time.monotonic()

    def keep_peak(self) -> None:
        """Take note of the peak of training so far, which somebody is about to reset."""
        self._train_peak = max(self._train_peak, self.meter.read())

    @contextlib.contextmanager
    def phase_peak(self) -> Iterator[None]:
        """Measure the peak of an evaluation apart from that of training; in a cohort it is nobody's own."""
        if self.shared_process:
            yield
            return
        self.keep_peak()
        self.meter.begin()
        yield
        self._eval_peak = max(self._eval_peak, self.meter.read())
        self.meter.begin()

    # At the end ----------------------------------------------------------------------------------

    def finish(self, status: RunStatus, error: str | None) -> Record:
        """Save the adapter if the run is complete, write the record, close everything, free the slot."""
        record = self._record
        record.status, record.error = status, error
        if self._slot is not None:
            self._slot.stand_up()
            self._tell_skipped(self._slot.progress)
            record.metrics = self._final_metrics()
            record.measured_in = self._measured_in()
            if status is RunStatus.completed and not self.shared_process:
                prediction = self._prediction()
                record.predicted = {} if prediction is None else dict(prediction.metrics())
        record.evals |= self.evals
        if status is RunStatus.completed:
            trained = self.job.directory.trained(self.job.config.lora)
            self.shared.save(self.slot.adapter, trained)
        if status in (RunStatus.completed, RunStatus.pruned):
            remove_checkpoints(self.job.directory.checkpoint)
        if self.job.probe is not None:
            take_costs(record, self.job.probe)
        record.wall_seconds = self._wall_seconds()
        try:
            self._metrics.close()
        except OSError as refused:
            if status is RunStatus.completed:
                raise
            self.job.notes.append(f"metrics.jsonl lacks its end: {refused.strerror}")
        if status is not RunStatus.interrupted:  # that one will grow again
            make_columns(self.job.directory.metrics, keep=True)
        answers = read_answers(self.job.directory.answers)
        for note in self._tracker.finish(record, answers, self._compared_scores()):
            self.note(note)
        write_record(self.job.directory.record, record)
        if self._slot is not None:
            self.shared.detach(self._slot.adapter)
        return record

    def _compared_scores(self) -> dict[str, RowScores]:
        """Return the scores of a confirmed run's rows after training; no other run is compared by them."""
        sweep = self._record.provenance.get("sweep") or {}
        if sweep.get("role") != "confirmation":
            return {}
        return read_scores(self.job.directory.scores, "after")

    def _tell_skipped(self, progress: Progress) -> None:
        """Say how many steps of a run in float16 have moved nothing."""
        if progress.loss_scale is not None and progress.loss_scale.skipped_steps:
            self.note(
                f"float16: {progress.loss_scale.skipped_steps} of {progress.step} steps were left out, since "
                f"their gradients overflowed; the loss scale ended at {progress.loss_scale.value:g}"
            )

    def predicted_pass_bytes(self) -> int:
        """Return what the planner says that a pass of this run alone needs; 0 where it cannot say."""
        prediction = self._prediction()
        if prediction is None:
            return 0
        momentary = prediction.transient_bytes if prediction.device == "cuda" else 0
        return prediction.parts["activation"] + momentary

    def _prediction(self) -> "Prediction | None":
        """Return what the planner says of this run; a plan that breaks costs the run nothing."""
        steps = WINDOW_STEPS if self.job.is_probe else self.slot.total_steps
        rows = self.job.data.train
        try:
            return predicted_run(self.shared.base.source, self.job.config, rows, steps)
        except Exception as error:
            self.note(f"its cost could not be predicted: {type(error).__name__}: {error}")
            return None

    def _measured_in(self) -> MeasuredIn:
        if self.shared_process:
            return MeasuredIn.cohort
        return MeasuredIn.probe if self.job.is_probe else MeasuredIn.solo

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._began

    def _final_metrics(self) -> dict[str, float | None]:
        slot, size = self.slot, self.shared.size
        parts: dict[str, float | None] = {
            "base": size.weight_bytes,
            "quant_constants": size.constant_bytes,
            "adapter": slot.adapter.num_bytes,
            "gradient": slot.adapter.gradient_bytes,
            "optimizer": distinct_bytes(slot.optimizer.tensors()),
            "activation": None if self.shared_process else slot.activation_bytes,
        }
        assert tuple(parts) == MEMORY_PARTS
        metrics: dict[str, float | None] = {
            memory_part_name(part): value for part, value in parts.items()
        }
        metrics |= {
            "adapter/trainable_params": slot.adapter.num_parameters,
            "base/logical_params": size.logical_params,
            "base/bits_per_param": size.bits_per_param,
            "base/packed_share": self.coverage.packed,
            "adapter/adapted_share": self.coverage.adapted,
            "train/loss": self.loss,
            "cohort/energy_joules": self.costs.joules,
            "throughput/floor_ms": self._floor_ms(),
        }
        if not self.shared_process:
            metrics |= slot.clock.metrics() | self._peaks(parts) | self._of_device()
        return metrics

    def _floor_ms(self) -> float | None:
        """Return the floor of a step of this run alone; one that cannot be measured costs the run nothing."""
        clock, base = self.slot.clock, self.shared.base
        chosen = any(spec.experts > 1 for spec in base.linears)  # by the tokens: no count is known
        if not clock.seconds or chosen:
            return None
        micro_batches = self.job.config.optim.batch_size // self.slot.micro_batch_size
        share = len(clock.seconds) * micro_batches * self.num_processes
        step = StepSize(
            micro_batches=micro_batches,
            input_tokens=sum(clock.input_tokens) / share,
            loss_tokens=sum(clock.loss_tokens) / share,
        )
        rates = rates_of(base.device, cache_directory(self.job.config) / "rates")
        decodes = (
            self.shared.backend.name is not BackendName.cpu
        )  # small bases: weights may be kept
        trains_all = self.job.config.lora.trains_all

        def floor_ms() -> float:
            found = step_floor(base, rates, step, decodes=decodes, trains_all=trains_all)
            return found.total_ms

        try:
            floor = floor_ms()
            if not self.shared_process and floor > 1e3 * min(clock.seconds):
                rates.measure_again()  # the machine was busy when they were measured
                floor = floor_ms()
            return floor
        except Exception as error:
            self.note(f"the floor of its step is not known: {type(error).__name__}: {error}")
            return None

    def _of_device(self) -> dict[str, float | None]:
        """Return what a run alone tells of its device, where the device tells it."""
        clock, joules = self.slot.clock, self.costs.joules
        found = {
            "throughput/model_flops_utilisation": clock.utilisation(self._work),
            "device/step_joules": None if joules is None else joules / len(clock.seconds),
        }
        known: dict[str, float | None] = {n: v for n, v in found.items() if v is not None}
        if self.job.config.optim.name.is_paged:
            known["memory/paged_bytes"] = self._paged_bytes()
        return known

    def _paged_bytes(self) -> int | None:
        """Return what has moved since the run began here; None where nothing counts it."""
        if self._paging is None:
            return None
        counters, before = self._paging
        return counters.moved_bytes() - before

    def _peaks(self, parts: dict[str, float | None]) -> dict[str, float | None]:
        """Return the peaks by phase."""
        self.keep_peak()
        known = [int(value) for value in parts.values() if value is not None]
        total = sum(known) if len(known) == len(parts) else None
        return {
            "memory/peak_bytes": self.meter.training_peak(self._train_peak, total),
            "memory/load_peak_bytes": self.shared.load_peak_bytes,
            "memory/eval_peak_bytes": self._eval_peak or None,
            "memory/process_peak_bytes": self.meter.process_peak(self._train_peak),
        }
