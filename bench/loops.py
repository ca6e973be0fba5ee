"""Ours and the loops that it is compared with: a plain one on PEFT, `transformers.Trainer` as documented."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F

from harness.base.build import Base
from harness.config.identity import Identity
from harness.config.schema import RunConfig
from harness.data.prepare import PreparedData
from harness.data.rows import NO_LOSS, Batch, TokenRows
from harness.engine.shared_base import SharedBase
from harness.records.run_directory import RunDirectory
from harness.request import Request
from harness.training.job import Job
from harness.training.slot import Slot, clip

Step = Callable[[], float]
"""Makes one optimizer step and returns its loss, on the host."""


@dataclass(slots=True)
class Times:
    """Seconds of each step of one contender, the warm-up included."""

    wait: Callable[[], None] = lambda: None
    """Waits until the device has done all that was asked of it."""
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """End the step."""
        self.wait()
        wall, processor = self._began
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def run(self, step: Step) -> float:
        """Time one step; returns its loss."""
        self.begin()
        loss = step()
        self.end()
        return loss

    def medians(self, warmup: int) -> dict[str, float]:
        """Return the median step in milliseconds, the warm-up left out."""
        return {
            "wall_ms": 1e3 * statistics.median(self.wall[warmup:]),
            "processor_ms": 1e3 * statistics.median(self.processor[warmup:]),
        }

    def over(self, other: "Times", warmup: int, times: float = 1.0) -> dict[str, dict[str, float]]:
        """Return medians and quartiles of own step i over `times` * the other's step i."""
        return {
            "wall": _ratio(self.wall[warmup:], other.wall[warmup:], times),
            "processor": _ratio(self.processor[warmup:], other.processor[warmup:], times),
        }


def _ratio(over: Sequence[float], under: Sequence[float], times: float) -> dict[str, float]:
    each = [a / (times * b) for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return {"median": middle, "low_quartile": low, "high_quartile": high}


def harness_slot(shared: SharedBase, config: RunConfig, rows: TokenRows, name: str) -> Slot:
    """Return one run's place in a cohort; of its data a slot reads the training rows only."""
    base, identity = shared.base, Identity(run_id=name, cell_id=name)
    unused = RunDirectory(Path("unused"))
    job = Job(
        request=Request(config, base.source, base.fingerprint, identity, unused),
        data=cast(PreparedData, SimpleNamespace(train=rows)),
        provenance={},
    )
    return Slot(job, shared)


def harness_step(shared: SharedBase, slots: Sequence[Slot]) -> list[float]:
    """Make a step of these slots as `harness.training.session` does, without files; return their losses."""
    while True:
        gradients = shared.backend.gradients([slot.next_work() for slot in slots])
        for slot, gradient in zip(slots, gradients, strict=True):
            slot.receive(gradient)
        if slots[0].step_is_complete:
            break
    losses = clip(slots)[:, 0].tolist()
    for slot in slots:
        slot.update()
    return losses


def peft_model(base: Base, rank: int, alpha: int) -> Any:
    """Return PEFT's own model on a base, with the initial adapter of our run of seed 0."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    return get_peft_model(base.model, config).train()


def plain_step(
    model: Any, batches: Iterable[Batch], learning_rate: float, max_grad_norm: float, **forward: Any
) -> Step:
    """Return a step as a plain loop makes it; `forward` is what the model is given beside the tokens."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0, fused=True)
    left = iter(batches)

    def step() -> float:
        batch = next(left).to(weights[0].device)
        logits = model(input_ids=batch.input_ids_BT, **forward).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def trainer_steps(
    model: Any,
    batches: Sequence[Batch],
    times: Times,
    between: Callable[[], None],
    learning_rate: float,
    max_grad_norm: float,
) -> float:
    """Train on each batch once, in order, at a constant rate; returns the mean loss of the steps.

    Into `times` go all that the Trainer does between two calls of `between`, which follows each step.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Interleave(TrainerCallback):
        """Ends a step's time where the Trainer says so and begins the next one's when all are done."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.end()
            between()
            times.begin()

    no_loss = torch.tensor([NO_LOSS])
    examples = [
        {"input_ids": row, "labels": torch.cat([no_loss, targets[:-1]])}  # it shifts by itself
        for batch in batches
        for row, targets in zip(batch.input_ids_BT, batch.targets_BT, strict=True)
    ]
    use_cpu = next(model.parameters()).device.type == "cpu"
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=len(batches[0].input_ids_BT),
            max_steps=len(batches),
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=max_grad_norm,
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=use_cpu,
            dataloader_pin_memory=not use_cpu,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, examples),
            callbacks=[Interleave()],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer.train().training_loss
