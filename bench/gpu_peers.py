"""The step that `bench.gpu` compares ours with: a plain loop on PEFT, and transformers.Trainer."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from bench.gpu_models import (
    ALPHA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    RANK,
    Shape,
    random_base,
    random_rows,
    run_config,
)
from bench.step import Step
from bench.trainer import train
from harness.config.schema import QuantConfig
from harness.data.order import batch_rows
from harness.data.rows import Batch


class Synchroniser(Protocol):
    """What waits for a device."""

    device: torch.device

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked of it."""
        ...


def peft_model(shape: Shape, quant: QuantConfig, device: torch.device) -> Any:
    """Return PEFT's own model on a base of its own, with the initial adapter of our run 0."""
    from peft import LoraConfig, get_peft_model

    base = random_base(shape, quant, device)
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear")
    return get_peft_model(base.model, config).train()


def batches(shape: Shape, tokens: int) -> Callable[[int], Batch]:
    """Return the batch of each step, as our run 0 has it."""
    rows = random_rows(shape, tokens)
    size = run_config(QuantConfig(), tokens, 0).optim.batch_size
    return lambda step: rows.batch(batch_rows(len(rows), size, 0, step))


def plain_step(shape: Shape, quant: QuantConfig, tokens: int, device: torch.device) -> Step:
    """Return the step as a plain loop."""
    model = peft_model(shape, quant, device)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    batch_of = batches(shape, tokens)
    made = 0

    def step() -> float:
        nonlocal made
        batch = batch_of(made).to(device)
        made += 1
        logits = model(input_ids=batch.input_ids_BT, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def trainer_steps(
    shape: Shape,
    quant: QuantConfig,
    tokens: int,
    clock: Synchroniser,
    steps: int,
    between: Callable[[], None],
) -> list[float]:
    """Train with transformers.Trainer, calling `between` after every step; returns seconds of each."""
    from transformers import TrainerCallback

    class Interleave(TrainerCallback):
        """Ends a step's time where the Trainer says so and begins the next one's when all are done."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.synchronise()
            seconds.append(time.perf_counter() - self.began)
            between()
            self.began = time.perf_counter()

    seconds: list[float] = []
    batch_of = batches(shape, tokens)
    rows = [(batch.input_ids_BT, batch.targets_BT) for batch in map(batch_of, range(steps))]
    train(
        peft_model(shape, quant, clock.device),
        rows,
        Interleave(),
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        use_cpu=not torch.cuda.is_available(),
    )
    return seconds
