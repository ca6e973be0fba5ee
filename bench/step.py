"""What one optimizer step costs: ours against a plain loop on PEFT and against transformers.Trainer.

    python -m bench.step [--hidden 64] [--scale 1.0]

All three train a LoRA adapter of rank 8 on all linear layers of the same random Llama (the shape of
stories260K, or as wide as `--hidden`), the same random tokens, AdamW (fused), clipping at 0.3, in float32
on one CPU thread, and must report the same losses. Steps are interleaved one by one: the Trainer drives,
and between two of its steps the others make theirs, so that a slow stretch of the machine falls on all.
A ratio is the median over these steps of one step over its neighbour, with quartiles: of the wall clock,
and of processor time, which is the steadier of the two where other work shares the processor.

- `harness`: the slot and cohort of `harness.training`, all that a session does in a step but files;
- `plain`: forward, cross-entropy, backward, clip, step, written against `peft.get_peft_model`;
- `trainer`: `transformers.Trainer.train`, neither logging, saving nor evaluating.

`bench.cohort` measures what a pass of several runs costs.
"""

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from bench.loops import (
    Step,
    Times,
    harness_slot,
    harness_step,
    peft_model,
    plain_step,
    trainer_steps,
)
from bench.measured import keep, load
from bench.shapes import FORMATS, Shape
from harness.base.build import Base
from harness.config.schema import LoraConfig, OptimConfig, QuantConfig, RunConfig
from harness.data.order import batch_rows
from harness.data.rows import Batch, TokenRows
from harness.engine.shared_base import SharedBase

STEPS_BY_TOKENS = {64: 120, 256: 100, 1024: 50, 4096: 24}
"""Interleaved steps by tokens of a micro-batch, which is the whole batch."""
TARGETS = {"harness_over_plain": 1.05, "harness_over_trainer": 0.90}

_WARMUP_STEPS = 5
_SAME_LOSS = 1e-5
_ROW_LENGTH = 256
_RANK, _ALPHA, _LEARNING_RATE, _MAX_GRAD_NORM, _SEED = 8, 16, 1e-3, 0.3, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of the grid."""

    shape: Shape
    quant: QuantConfig
    rows: TokenRows
    batch_size: int
    steps: int

    @property
    def total_steps(self) -> int:
        return _WARMUP_STEPS + self.steps

    @property
    def run_config(self) -> RunConfig:
        return RunConfig(
            quant=self.quant,
            lora=LoraConfig(rank=_RANK, alpha=float(_ALPHA)),
            optim=OptimConfig(
                lr=_LEARNING_RATE,
                max_grad_norm=_MAX_GRAD_NORM,
                batch_size=self.batch_size,
                steps=self.total_steps,
            ),
            seed=_SEED,
        )

    def base(self) -> Base:
        """Return a random base, packed and frozen as `build_base` does it."""
        return self.shape.base(self.quant, torch.device("cpu"), tie_word_embeddings=True)


def setting_of(
    hidden: int, quant: QuantConfig, tokens: int, scale: float, loss_share: float
) -> Setting:
    """Return a grid point of fresh random rows, the last `loss_share` of each carrying loss."""
    steps = max(8, round(STEPS_BY_TOKENS[tokens] * scale))
    length = min(tokens, _ROW_LENGTH)
    batch_size = tokens // length
    shape = Shape("llama", hidden, hidden * 43 // 16, 5, 8, 4, 512)  # stories260K's proportions
    rows = shape.rows(batch_size * (_WARMUP_STEPS + steps), length, loss_share)
    return Setting(shape=shape, quant=quant, rows=rows, batch_size=batch_size, steps=steps)


# The contenders ----------------------------------------------------------------------------------


def solo_step(setting: Setting) -> Step:
    """Return the step of a run alone on a base of its own."""
    shared = SharedBase(setting.base())
    slot = harness_slot(shared, setting.run_config, setting.rows, "bench")
    shared.backend.keep_decoded(False)
    return lambda: harness_step(shared, [slot])[0]


def batches(setting: Setting) -> list[Batch]:
    """Return the batch of every step in the harness's order, made in advance."""
    rows, size = setting.rows, setting.batch_size
    order = (batch_rows(len(rows), size, _SEED, step) for step in range(setting.total_steps))
    return [rows.batch(part) for part in order]


def peft_base(setting: Setting) -> Any:
    """Return PEFT's own model on an equal base, with the same initial adapter."""
    return peft_model(setting.base(), _RANK, _ALPHA)


# Measuring ---------------------------------------------------------------------------------------


def compare_loops(setting: Setting) -> dict[str, Any]:
    """Interleave harness, plain loop and Trainer; their losses must agree."""
    plain = plain_step(peft_base(setting), batches(setting), _LEARNING_RATE, _MAX_GRAD_NORM)
    steps = {"harness": solo_step(setting), "plain": plain}
    times = {name: Times() for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def between() -> None:
        for name in _turns(list(steps), len(losses["harness"])):
            losses[name].append(times[name].run(steps[name]))

    trainer = Times()
    trainer_loss = trainer_steps(
        peft_base(setting), batches(setting), trainer, between, _LEARNING_RATE, _MAX_GRAD_NORM
    )
    worst = max(abs(a - b) for a, b in zip(losses["harness"], losses["plain"], strict=True))
    of_trainer = abs(statistics.fmean(losses["harness"]) - trainer_loss)
    assert max(worst, of_trainer) < _SAME_LOSS, (worst, of_trainer)
    return {
        "steps": setting.steps,
        "harness": times["harness"].medians(_WARMUP_STEPS),
        "plain": times["plain"].medians(_WARMUP_STEPS),
        "trainer": trainer.medians(_WARMUP_STEPS),
        "harness_over_plain": times["harness"].over(times["plain"], _WARMUP_STEPS),
        "harness_over_trainer": times["harness"].over(trainer, _WARMUP_STEPS),
        "loss_difference_plain": worst,
        "loss_difference_trainer": of_trainer,
    }


def _turns(names: list[str], turn: int) -> list[str]:
    """Return the names, every other turn backwards."""
    return names[::-1] if turn % 2 else names


def measure(hidden: int, scale: float, loss_share: float) -> dict[str, Any]:
    """Measure the whole grid for one width."""
    loops = {}
    for tokens in STEPS_BY_TOKENS:
        loops[tokens] = {
            name: compare_loops(setting_of(hidden, quant, tokens, scale, loss_share))
            for name, quant in FORMATS.items()
        }
        print_rows(tokens, loops[tokens])
    return {"loops": loops}


# Output ------------------------------------------------------------------------------------------


def print_header(hidden: int) -> None:
    """Print the head of the table."""
    columns = ["tokens", "format", "harness ms", "/ plain", "/ trainer"]
    print(
        f"\nhidden {hidden}; ratios of wall clock (of processor time)\n\n| {' | '.join(columns)} |"
    )
    print("|" + "---:|" * len(columns))


def print_rows(tokens: int, loops: dict[str, Any]) -> None:
    """Print one row for each format."""
    for name, loop in loops.items():
        cells = [str(tokens), name, f"{loop['harness']['wall_ms']:.1f}"]
        cells += [_shown(loop[key]) for key in TARGETS]
        print(f"| {' | '.join(cells)} |", flush=True)


def _shown(ratio: dict[str, dict[str, float]]) -> str:
    return f"{ratio['wall']['median']:.2f} ({ratio['processor']['median']:.2f})"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=64, help="width of the model")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument(
        "--loss-share",
        type=float,
        default=1.0,
        help="share of the positions that carry loss; instruction data have about a half",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # the other cores are left to whatever else runs
    before = load()
    print_header(options.hidden)
    result = {
        "torch_threads": torch.get_num_threads(),
        "hidden": options.hidden,
        "targets": TARGETS,
        "loss_share": options.loss_share,
        **measure(options.hidden, options.scale, options.loss_share),
    }
    width = "" if options.hidden == 64 else f"_hidden{options.hidden}"
    share = "" if options.loss_share == 1 else f"_loss{options.loss_share:g}"
    keep(f"step{width}{share}", result, before)


if __name__ == "__main__":
    main()
