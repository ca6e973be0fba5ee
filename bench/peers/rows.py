"""The same work for the peers: our tokenized rows in the order in which we train them, and the task file.

The rows come without padding: each side lays out a batch in its own way, and tokens are counted without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.base.source import find_model
from harness.base.targets import adapted_layers, shortest_names
from harness.config.compose import compose_run
from harness.config.schema import LoraConfig, RunConfig, Schedule
from harness.data.order import batch_rows
from harness.data.prepare import PreparedData
from harness.data.rows import NO_LOSS, TokenRows
from harness.request import make_request

from bench.peers.channel import Task  # isort: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training as both sides do it."""

    overrides: tuple[str, ...]
    """Overrides of `harness run`, without paths."""
    config: RunConfig
    task: Task
    tokens_per_step: float
    """Tokens of a step, padding not counted: mean over all steps."""


def make_work(overrides: Sequence[str], out: Path, cache: Path, directory: Path) -> Work:
    """Tokenize the data as `harness run` does and write the peers' rows and task into `directory`."""
    from harness.training.launch import prepare

    request = make_request(compose_run([*overrides, f"paths.out={out}", f"paths.cache={cache}"]))
    config = request.config
    _check(config)
    data = prepare(config, request.source, request.fingerprint)
    order = ordered_rows(config, data)
    directory.mkdir(parents=True, exist_ok=True)
    train, validation = directory / "train", directory / "validation"
    if not train.exists():
        _save(train, data.train, order)
        held_out = data.rows(config.eval.split)
        _save(validation, held_out, torch.arange(len(held_out)))
    assert config.optim.steps is not None
    return Work(
        overrides=tuple(overrides),
        config=config,
        task=_task(config, train, validation),
        tokens_per_step=float(data.train.lengths_N[order].sum()) / config.optim.steps,
    )


def _check(config: RunConfig) -> None:
    """Assert that the peers can do the same: what is not the same here would make the comparison void."""
    optim, lora = config.optim, config.lora
    assert config.quant.double_quant, config.quant
    assert config.quant.block_size == 64, config.quant
    assert optim.schedule is Schedule.linear, optim.schedule
    assert optim.warmup_steps == 0, optim.warmup_steps
    assert optim.micro_batch_size is None, optim.micro_batch_size
    assert optim.steps is not None
    assert optim.max_grad_norm is not None
    assert lora.dropout == 0, lora.dropout
    assert not lora.rslora
    assert not config.eval.before, "Trainer.train does not evaluate the untouched base"
    assert not config.eval.generate, "the peers generate nothing"


def ordered_rows(config: RunConfig, data: PreparedData) -> torch.Tensor:
    """Return the training rows' indices in the order of their use, one batch after the other."""
    optim = config.optim
    assert optim.steps is not None
    steps = range(optim.steps)
    return torch.cat(
        [batch_rows(len(data.train), optim.batch_size, config.seed, step) for step in steps]
    )


def labels_of(rows: TokenRows) -> torch.Tensor:
    """Return targets [N, T] as transformers wants labels: at the token itself, which it shifts."""
    first_N1 = torch.full_like(rows.targets_NT[:, :1], NO_LOSS)
    return torch.cat([first_N1, rows.targets_NT[:, :-1]], dim=1)


def _save(directory: Path, rows: TokenRows, order: torch.Tensor) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    assert rows.segments_NT is None, "packed rows have a mask that the peers are not given"
    lengths = rows.lengths_N[order].tolist()
    tensors = {"input_ids": rows.input_ids_NT[order], "labels": labels_of(rows)[order]}
    columns: dict[str, Any] = {
        name: [row[:length].tolist() for row, length in zip(tensor, lengths, strict=True)]
        for name, tensor in tensors.items()
    }
    Dataset.from_dict(columns).save_to_disk(directory)


def _task(config: RunConfig, train: Path, validation: Path) -> Task:
    optim, lora = config.optim, config.lora
    source = find_model(config.model)
    assert source.directory is not None, "the peers get a directory"
    assert optim.steps is not None
    assert optim.max_grad_norm is not None
    return Task(
        model=str(Path(source.directory).absolute()),
        train_rows=str(train.absolute()),
        validation_rows=str(validation.absolute()),
        rank=lora.rank,
        alpha=_alpha(lora),
        target_modules=_targets(config),
        seed=config.seed,
        steps=optim.steps,
        batch_size=optim.batch_size,
        eval_batch_size=config.eval.batch_size,
        learning_rate=optim.lr,
        beta1=optim.beta1,
        beta2=optim.beta2,
        epsilon=optim.epsilon,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        output=str((train.parent / "output").absolute()),
    )


def _alpha(lora: LoraConfig) -> float:
    if lora.alpha is not None:
        return lora.alpha
    assert lora.alpha_over_rank is not None
    return lora.alpha_over_rank * lora.rank


def _targets(config: RunConfig) -> list[str]:
    from harness.base.build import inspect_model

    linears = inspect_model(find_model(config.model), config.model).linears
    return list(shortest_names(adapted_layers(config.lora, linears), linears))
