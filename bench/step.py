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
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch

from bench.loops import Step, Times, peft_model, plain_step, trainer_steps
from harness.base.build import Base, freeze
from harness.config.identity import Identity
from harness.config.schema import LoraConfig, OptimConfig, QuantConfig, QuantFormat, RunConfig
from harness.data.order import batch_rows
from harness.data.prepare import PreparedData
from harness.data.rows import NO_LOSS, Batch, TokenRows
from harness.engine.shared_base import SharedBase
from harness.records.provenance import collect_provenance
from harness.records.run_directory import RunDirectory, utc_now
from harness.request import Request
from harness.training.job import Job
from harness.training.slot import Slot, clip

FORMATS = {
    "none": QuantConfig(format=QuantFormat.none),
    "nf4": QuantConfig(format=QuantFormat.nf4),
    "nf4_dq": QuantConfig(format=QuantFormat.nf4, double_quant=True),
    "int4": QuantConfig(format=QuantFormat.int4),
}
STEPS_BY_TOKENS = {64: 120, 256: 100, 1024: 50, 4096: 24}
"""Interleaved steps by tokens of a micro-batch, which is the whole batch."""
TARGETS = {"harness_over_plain": 1.05, "harness_over_trainer": 0.90}

_WARMUP_STEPS = 5
_SAME_LOSS = 1e-5
_ROW_LENGTH = 256
_VOCABULARY = 512
_RANK, _ALPHA, _LEARNING_RATE, _MAX_GRAD_NORM, _SEED = 8, 16, 1e-3, 0.3, 0
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of the grid."""

    hidden: int
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


def setting_of(
    hidden: int, quant: QuantConfig, tokens: int, scale: float, loss_share: float
) -> Setting:
    """Return a grid point of fresh random rows, the last `loss_share` of each carrying loss."""
    steps = max(8, round(STEPS_BY_TOKENS[tokens] * scale))
    length = min(tokens, _ROW_LENGTH)
    batch_size = tokens // length
    num_rows = batch_size * (_WARMUP_STEPS + steps)
    generator = torch.Generator().manual_seed(_SEED)
    input_ids = torch.randint(3, _VOCABULARY, (num_rows, length), generator=generator)
    targets = torch.full_like(input_ids, NO_LOSS)
    first = round((1 - loss_share) * length)
    targets[:, first:-1] = input_ids[:, first + 1 :]
    rows = TokenRows(
        input_ids_NT=input_ids.int(),
        targets_NT=targets.int(),
        segments_NT=None,
        lengths_N=torch.full((num_rows,), length),
        source_N=torch.arange(num_rows),
    )
    return Setting(hidden=hidden, quant=quant, rows=rows, batch_size=batch_size, steps=steps)


def random_base(hidden: int, quant: QuantConfig) -> Base:
    """Return a random Llama of stories260K's proportions, packed and frozen as `build_base` does it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=_VOCABULARY,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config)
    return freeze(model, quant, torch.device("cpu"))


# The contenders ----------------------------------------------------------------------------------


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


def harness_step(shared: SharedBase, slots: Sequence[Slot], *, in_cohort: bool = False) -> Step:
    """Return what `harness.training.session` does in a step of these slots, without files."""
    shared.backend.keep_decoded(in_cohort)
    return partial(_harness_step, shared, slots)


def _harness_step(shared: SharedBase, slots: Sequence[Slot]) -> float:
    """Make one step."""
    gradients = shared.backend.gradients([slot.next_work() for slot in slots])
    for slot, gradient in zip(slots, gradients, strict=True):
        slot.receive(gradient)
    numbers = clip(slots).tolist()
    for slot in slots:
        slot.update()
    return numbers[0][0]


def solo_step(setting: Setting) -> Step:
    """Return the step of a run alone on a base of its own."""
    shared = SharedBase(random_base(setting.hidden, setting.quant))
    slot = harness_slot(shared, setting.run_config, setting.rows, "bench")
    return harness_step(shared, [slot], in_cohort=False)


def batches(setting: Setting) -> list[Batch]:
    """Return the batch of every step in the harness's order, made in advance."""
    rows, size = setting.rows, setting.batch_size
    order = (batch_rows(len(rows), size, _SEED, step) for step in range(setting.total_steps))
    return [rows.batch(part) for part in order]


def peft_base(setting: Setting) -> Any:
    """Return PEFT's own model on an equal base, with the same initial adapter."""
    return peft_model(random_base(setting.hidden, setting.quant), _RANK, _ALPHA)


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
    arguments = ["python", "-m", "bench.step", "--hidden", str(options.hidden)]
    arguments += ["--scale", str(options.scale), "--loss-share", str(options.loss_share)]
    torch.set_num_threads(1)  # the other cores are left to whatever else runs
    before = psutil.getloadavg()[0]
    print_header(options.hidden)
    result = {
        "measured_at": utc_now(),
        "provenance": collect_provenance(arguments=arguments).as_tree(),
        "torch_threads": torch.get_num_threads(),
        "load_average_before": before,
        "hidden": options.hidden,
        "targets": TARGETS,
        "loss_share": options.loss_share,
        **measure(options.hidden, options.scale, options.loss_share),
        "load_average_after": psutil.getloadavg()[0],
    }
    width = "" if options.hidden == 64 else f"_hidden{options.hidden}"
    share = "" if options.loss_share == 1 else f"_loss{options.loss_share:g}"
    name = f"step{width}{share}.json"
    _RESULTS.mkdir(parents=True, exist_ok=True)
    (_RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"\nload {before:.1f} before, {psutil.getloadavg()[0]:.1f} after; in bench/results/{name}"
    )


if __name__ == "__main__":
    main()
