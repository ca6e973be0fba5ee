"""The engine itself, measured: what the planner's predictions are compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.base.build import build_base
from harness.base.source import find_model, model_fingerprint
from harness.config.schema import Attention, LoraConfig, ModelConfig, OptimConfig, QuantConfig
from harness.data.rows import NO_LOSS, Batch
from harness.engine.micro_step import Work, packed_gradients
from harness.engine.shared_base import SharedBase
from harness.measure.memory import SavedBytes, distinct_bytes
from harness.plan.model import PlannedModel
from harness.plan.prediction import BatchSize
from harness.plan.tracing import LiveBytes
from harness.training.optimizers import AdapterOptimizer


@dataclass(frozen=True)
class Bases:
    """Where models come from and bases are kept."""

    directories: dict[str, str]
    work: Path

    def real(self, name: str, quant: QuantConfig, attention: Attention) -> SharedBase:
        """Build the base with its weights."""
        config = ModelConfig(name=self.directories[name], attention=attention)
        source = find_model(config)
        base = build_base(
            source,
            config,
            quant,
            fingerprint=model_fingerprint(source, self.work / "memo.json"),
            device=torch.device("cpu"),
            cache=self.work / "cache",
        )
        return SharedBase(base)

    def planned(self, name: str, attention: Attention = Attention.sdpa) -> PlannedModel:
        """Plan the same model from its config."""
        config = ModelConfig(name=self.directories[name], attention=attention)
        return PlannedModel.from_source(find_model(config), config)


def made_batch(size: BatchSize) -> Batch:
    """Return random tokens in a batch of this size; packed rows hold two examples."""
    positions = size.rows * size.length
    targets = torch.full((positions,), NO_LOSS)
    targets[torch.randperm(positions)[: size.loss_tokens]] = 5
    segments = 1 + torch.arange(size.length) // (size.length // 2)
    return Batch.of(
        torch.randint(3, 250, (size.rows, size.length)),
        targets.view(size.rows, size.length),
        segments.expand(size.rows, -1).contiguous() if size.packed else None,
    )


@contextmanager
def work_of(
    shared: SharedBase, loras: Sequence[LoraConfig], optim: OptimConfig, size: BatchSize
) -> Iterator[list[Work]]:
    """Attach these adapters and yield their shares of one pass."""
    adapters = [shared.attach(lora, seed) for seed, lora in enumerate(loras)]
    yield [
        Work(
            adapter=adapter,
            batch=made_batch(size),
            loss_tokens=size.loss_tokens,
            dropout_key=None if adapter.dropout == 0 else seed,
            recompute=optim.gradient_checkpointing,
        )
        for seed, adapter in enumerate(adapters)
    ]
    for adapter in adapters:
        shared.detach(adapter)


def saved_bytes(
    shared: SharedBase, loras: Sequence[LoraConfig], optim: OptimConfig, size: BatchSize
) -> int:
    """Run one pass of these adapters and return the bytes that autograd kept."""
    saved = SavedBytes(shared.model)
    with work_of(shared, loras, optim, size) as work, saved.counting():
        packed_gradients(shared, work)
    return saved.total


def live_bytes(
    shared: SharedBase, loras: Sequence[LoraConfig], optim: OptimConfig, size: BatchSize
) -> int:
    """Run a second pass and return the peak of the bytes of its real tensors."""
    live = LiveBytes("cpu")
    with work_of(shared, loras, optim, size) as work:
        packed_gradients(shared, work)
        with live:
            packed_gradients(shared, work)
    return live.peak


def optimizer_state_bytes(shared: SharedBase, lora: LoraConfig, optim: OptimConfig) -> int:
    """Make one step of one adapter and return the bytes of its optimizer's state."""
    size = BatchSize(rows=1, length=4, loss_tokens=2)
    with work_of(shared, [lora], optim, size) as work:
        (gradient,) = packed_gradients(shared, work)
        optimizer = AdapterOptimizer(work[0].adapter, optim)
        optimizer.step(gradient.of_adapter, 1e-3)
        return distinct_bytes(optimizer.tensors())
