"""One run's place in a cohort: its adapter, optimizer, data cursor and progress, and nobody else's.

Nothing here draws from a shared generator or looks at another slot.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from harness.config.schema import FloatType
from harness.data.compact import without_padding
from harness.data.order import batch_rows, steps_for
from harness.data.rows import Batch
from harness.engine.adapter import Adapter, FlatGradient
from harness.engine.cuda.backend import CudaBackend, Step, why_not_captured
from harness.engine.dropout import dropout_key, noise_key
from harness.engine.micro_step import Gradient, Work
from harness.engine.neftune import Noise
from harness.engine.shared_base import SharedBase
from harness.measure.throughput import WARMUP_STEPS, StepClock
from harness.plan.batch import largest_micro_batch
from harness.training.checkpoint import Checkpoint, Progress
from harness.training.job import Job
from harness.training.loss_scale import LossScale
from harness.training.optimizers import AdapterOptimizer, clip_gradients
from harness.training.schedule import is_out_of_patience, learning_rate_factor


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """A micro-batch of the step in progress."""

    padded: Batch
    """Micro-batch as the data set has its rows."""
    batch: Batch
    """Micro-batch as the model sees it."""


class Slot:
    """A run being trained."""

    def __init__(self, job: Job, shared: SharedBase) -> None:
        self.job = job
        self.config = job.config
        self.shared = shared
        self.adapter: Adapter = shared.attach(job.config.lora, job.config.seed)
        self.optimizer = AdapterOptimizer(self.adapter, job.config.optim)
        self.progress = Progress(run_id=job.run_id)
        if job.config.quant.compute_dtype is FloatType.float16:
            self.progress.loss_scale = LossScale()
        self.best_adapter: dict[str, torch.Tensor] | None = None
        self.clock = StepClock()
        self.activation_bytes: int | None = None
        self._counted_size = (0, 0)
        optim, rows = job.config.optim, len(job.data.train)
        self.micro_batch_size = optim.micro_batch_size or optim.batch_size
        if optim.steps is not None:
            self.total_steps = optim.steps
        else:
            assert optim.epochs is not None
            self.total_steps = steps_for(optim.epochs, rows, optim.batch_size)
        self._first_step = _first_probed_step(job, shared) if job.is_probe else 0
        self._waiting: deque[_MicroBatch] = deque()
        self._prepared: tuple[int, list[_MicroBatch]] | None = None
        """A step to come, and its micro-batches."""
        self.is_ahead = False
        """Whether the backend has already added the next micro-batch."""
        self._loss_tokens = 0
        self._input_tokens = 0
        self._loss: torch.Tensor | None = None
        self._gradient: FlatGradient | None = None
        self._sum: FlatGradient | None = None
        """Sum of the micro-batches' gradients; None where a batch is one micro-batch."""
        self._seconds = 0.0

    # A step: micro-batches in, one update out ----------------------------------------------------

    def next_work(self) -> Work:
        """Return the next micro-batch of the step in progress, beginning a step where none is."""
        optim, micro = self.config.optim, self.micro_batch_size
        if not self._waiting:
            self._begin_step()
        micro_batches = optim.batch_size // micro
        number = self.progress.step * micro_batches + micro_batches - len(self._waiting)
        return self._work(self._waiting[0].batch, self._loss_tokens, number)

    def _work(self, batch: Batch, loss_tokens: int, number: int) -> Work:
        """Return a micro-batch as a pass takes it; `number`: of it among all of the run."""
        drops, alpha = self.config.lora.dropout > 0, self.config.optim.neftune_alpha
        return Work(
            adapter=self.adapter,
            batch=batch,
            loss_tokens=loss_tokens,
            dropout_key=dropout_key(self.config.seed, number) if drops else None,
            recompute=self.config.optim.gradient_checkpointing,
            noise=None if alpha is None else Noise(noise_key(self.config.seed, number), alpha),
            offload=self.config.optim.offload_activations,
            loss_scale=self.loss_scale,
        )

    def work_ahead(self) -> Work | None:
        """Return the first micro-batch of the step after the one that is being made, where that can be known.

        Not in float16: its loss scale depends on the step in progress.
        """
        step = self.progress.step + 1
        if (
            self._prepared is None
            or self._prepared[0] != step
            or self.progress.loss_scale is not None
        ):
            return None
        waiting = self._prepared[1]
        loss_tokens = sum(each.batch.num_loss_tokens for each in waiting)
        return self._work(waiting[0].batch, loss_tokens, step * len(waiting))

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by until the step is complete."""
        scale = self.progress.loss_scale
        return 1.0 if scale is None else scale.value

    def _begin_step(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] == self.progress.step and prepared[1]:
            self._waiting.extend(prepared[1])
        else:
            self._waiting.extend(self._rows_of(self.progress.step))
        self._loss_tokens = sum(each.batch.num_loss_tokens for each in self._waiting)
        self._input_tokens = sum(each.batch.num_input_tokens for each in self._waiting)
        self._loss = self._gradient = None
        self._seconds = 0.0

    def _rows_of(self, step: int) -> list["_MicroBatch"]:
        """Return the micro-batches of one step."""
        rows, optim, micro = self.job.data.train, self.config.optim, self.micro_batch_size
        number = self._first_step + step
        order = batch_rows(len(rows), optim.batch_size, self.config.seed, number)
        return [self._laid_out(rows.batch(part)) for part in order.split(micro)]

    def _laid_out(self, padded: Batch) -> "_MicroBatch":
        """Return a micro-batch without the positions that do not matter."""
        apart = self.shared.why_apart is not None
        return _MicroBatch(padded, without_padding(padded, apart=apart))

    @property
    def pass_tokens(self) -> int:
        """Positions of the micro-batch in progress."""
        return self._waiting[0].batch.num_input_tokens

    def counts_activations(self) -> bool:
        """Say whether the next micro-batch may keep more activations than those counted so far."""
        first = self._waiting[0]
        size = first.batch.num_input_tokens, first.batch.num_loss_tokens
        if size[0] <= self._counted_size[0] and size[1] <= self._counted_size[1]:
            return False
        self._counted_size = (
            max(size[0], self._counted_size[0]),
            max(size[1], self._counted_size[1]),
        )
        return True

    def count_activations(self, saved_bytes: int) -> None:
        """Remember what one micro-batch has kept for backward, if it is the most so far."""
        self.activation_bytes = max(saved_bytes, self.activation_bytes or 0)

    def shrink_micro_batch(self) -> bool:
        """Go on in smaller micro-batches, half as large where that divides; False where they have one row.

        The batch, and with it the gradient, stays the same up to rounding; dropout masks are drawn anew.
        """
        size = self.micro_batch_size
        smaller = next((part for part in range(size // 2, 0, -1) if size % part == 0), None)
        if smaller is None:
            return False
        self.micro_batch_size = smaller
        self._prepared = None
        self.activation_bytes, self._counted_size = None, (0, 0)
        parts = [part for each in self._waiting for part in _split(each.padded, smaller)]
        self._waiting = deque(self._laid_out(part) for part in parts)
        return True

    def shares(self, count: int) -> list[Batch]:
        """Return the micro-batch in progress in `count` parts, as equal as they can be, some perhaps empty.

        Each is laid out for itself; joined, the parts' rows are those of the micro-batch, in its order.
        """
        padded = self._waiting[0].padded
        rows = padded.input_ids_BT.shape[0]
        edges = [rows * part // count for part in range(count + 1)]
        parts = [padded.rows(start, stop) for start, stop in pairwise(edges)]
        return [self._laid_out(part).batch if part.input_ids_BT.numel() else part for part in parts]

    def receive(self, gradient: Gradient) -> None:
        """Add one micro-batch's gradient to the step's."""
        self._waiting.popleft()
        if self._gradient is None or self._loss is None:
            self._loss = gradient.loss
            self._gradient = gradient.of_adapter
            if self._waiting:  # what the pass has written lasts until the next one
                self._gradient = self._kept(gradient.of_adapter)
        else:
            self._loss = self._loss + gradient.loss
            self._gradient.flat_P.add_(gradient.of_adapter.flat_P)

    def _kept(self, gradient: FlatGradient) -> FlatGradient:
        """Return a copy in tensors of our own."""
        if self._sum is None:
            self._sum = FlatGradient.of(self.adapter, torch.empty_like(gradient.flat_P))
        self._sum.flat_P.copy_(gradient.flat_P)
        return self._sum

    @property
    def can_be_captured(self) -> bool:
        """Whether a backend with seats can move this run."""
        return why_not_captured(self.config) is None

    @property
    def is_seated(self) -> bool:
        """Whether the newest adapter, moments and gradient are in the backend's seat."""
        backend = self.shared.backend
        return isinstance(backend, CudaBackend) and backend.is_seated(self.adapter)

    def sit(self, backend: CudaBackend) -> None:
        """Take a seat, unless the run has one."""
        if not backend.is_seated(self.adapter):
            backend.sit(self.adapter, self.optimizer.moments())

    def bring(self) -> None:
        """Bring adapter and optimizer up to date, where the newest of both is in a seat."""
        backend = self.shared.backend
        if isinstance(backend, CudaBackend) and backend.is_seated(self.adapter):
            self.optimizer.take_moments(backend.take(self.adapter), self.progress.moves)

    def stand_up(self) -> None:
        """Bring everything, and leave the seat: what is then changed here is what a next one begins with."""
        self.bring()
        backend = self.shared.backend
        if isinstance(backend, CudaBackend):
            backend.leave(self.adapter)

    def passed(self) -> None:
        """Take note that the micro-batch in progress has been added up by the backend."""
        self._waiting.popleft()
        self.is_ahead = False

    def begin_again(self) -> None:
        """Begin the step in progress anew: what the backend had of it is gone."""
        self._waiting.clear()
        self.is_ahead = False

    def prepare_next(self) -> None:
        """Lay out the rows of the step after the one that is being made."""
        if self.progress.step + 1 < self.total_steps:
            self._prepared = (self.progress.step + 1, self._rows_of(self.progress.step + 1))

    def next_step(self) -> Step:
        """Return the step to be made, as a backend that moves adapters itself takes it."""
        optim, rate = self.config.optim, self.learning_rate
        return Step(
            adapter=self.adapter,
            number=self.progress.moves + 1,
            rate_a=rate,
            rate_b=rate * optim.loraplus_ratio,
            beta1=optim.beta1,
            beta2=optim.beta2,
            epsilon=optim.epsilon,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            loss_scale=self.loss_scale,
        )

    @property
    def step_is_complete(self) -> bool:
        """Whether all micro-batches of the step have been received."""
        return not self._waiting

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step in progress."""
        done, optim = self.progress, self.config.optim
        return optim.lr * learning_rate_factor(done.step, self.total_steps, optim, done.losses)

    def update(self) -> None:
        """Move the adapter by the step's gradient and begin the next step."""
        if not self.is_seated:  # else the backend has moved it
            assert self._gradient is not None
            self.optimizer.step(self._gradient, self.learning_rate)
        self._loss = self._gradient = None
        self.progress.step += 1
        if self.progress.loss_scale is not None:
            self.progress.loss_scale.moved()

    def skip_update(self, loss_scale: LossScale) -> None:
        """Leave the adapter where it is, since the gradient has overflowed float16; begin the next step."""
        self._loss = self._gradient = None
        self.progress.step += 1
        loss_scale.overflowed()

    def spend(self, seconds: float) -> None:
        """Count the wall-clock of one micro-step; at the end of a step it enters the clock."""
        self._seconds += seconds
        self.progress.wall_seconds += seconds
        if self.step_is_complete:
            self.clock.add(self._seconds, self._input_tokens, self._loss_tokens)

    @property
    def finished(self) -> bool:
        """Whether all optimizer steps are done, or the run has stopped early."""
        return self.progress.step >= self.total_steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether no evaluation of the last `optim.patience` has found a lower loss."""
        return is_out_of_patience(self.progress.losses, self.config.optim.patience)

    # Keeping and restoring -----------------------------------------------------------------------

    def take_loss(self, loss: float) -> None:
        """Take note of what an evaluation on the way found, and remember the best adapter if asked to."""
        self.progress.losses.append(loss)
        best = self.progress.best_loss
        if not self.config.eval.keep_best or not math.isfinite(loss):
            return
        if best is None or loss < best:
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
            self.best_adapter = self.tensors()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return a copy of the adapter's parameters."""
        self.bring()
        return {"flat_P": self.adapter.flat_P.clone()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put `tensors` back into the adapter."""
        self.stand_up()
        self.adapter.flat_P.copy_(tensors["flat_P"])

    def checkpoint(self) -> Checkpoint:
        """Return everything needed to go on from here, bit for bit."""
        return Checkpoint(
            progress=self.progress,
            adapter=self.tensors(),
            optimizer=self.optimizer.optimizer.state_dict(),
            best_adapter=self.best_adapter,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`."""
        self.progress = checkpoint.progress
        self.load_tensors(checkpoint.adapter)
        self.optimizer.optimizer.load_state_dict(checkpoint.optimizer)
        self.best_adapter = checkpoint.best_adapter


def _first_probed_step(job: Job, shared: SharedBase) -> int:
    """Return the step from which a probe draws its rows: the largest micro-batch is among its own."""
    apart = shared.why_apart is not None
    _, largest = largest_micro_batch(job.config, job.data.train, apart=apart)
    return max(0, largest - WARMUP_STEPS)


def _split(batch: Batch, rows: int) -> list[Batch]:
    """Return a batch in parts of so many rows."""
    starts = range(0, batch.input_ids_BT.shape[0], rows)
    return [batch.rows(start, start + rows) for start in starts]


def clip(slots: Sequence[Slot]) -> torch.Tensor:
    """Clip each slot's gradient by its own norm; return (loss, norm before clipping), a tensor [slots, 2]."""
    gradients, losses, limits = [], [], []
    for slot in slots:
        assert slot.step_is_complete
        assert slot._gradient is not None
        assert slot._loss is not None
        if slot.loss_scale != 1:
            slot._gradient.flat_P.mul_(1 / slot.loss_scale)
        gradients.append(slot._gradient)
        losses.append(slot._loss)
        limits.append(slot.config.optim.max_grad_norm)
    norms = clip_gradients(gradients, limits)
    return torch.stack([torch.stack(losses), torch.stack(norms).to(losses[0].dtype)], dim=1)
