"""What a step of a cohort costs: K runs in one pass against the same K one after the other.

    python -m bench.cohort [--hidden 128] [--rounds 1.0] [--most-tokens 65536] [--ranks 2,4,8,16]

Runs of cycling ranks train LoRA adapters on all linear layers of one random Llama in nf4, in float32 on one
CPU thread. A round makes one step of a run alone and, for each K, one pass of K runs twice: with adapters of
one rank stacked into batched products (what the harness does) and with a product for each adapter. Forward,
backward, clipping and AdamW are inside, files are not. A ratio is the median over rounds of the pass over K
times the round's step alone, with quartiles: of the wall clock, and of processor time.

Passes of more than `--most-tokens` positions are left out: they take minutes and stopped paying long before.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.loops import Step, Times, harness_slot, harness_step
from bench.measured import keep, load
from bench.shapes import FORMATS
from bench.step import Setting, setting_of
from harness.engine.shared_base import SharedBase
from harness.measure.heap import keep_freed_memory
from harness.training.slot import Slot

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS_BY_TOKENS = {64: 30, 256: 16, 1024: 10, 4096: 6}
"""Measured rounds by tokens of a run and step; one more warms up."""


def name_of(size: int, stacks: bool) -> str:
    """Return the name of one contender: a pass of so many runs, adapters stacked or one by one."""
    return f"{size} {'stacked' if stacks else 'one by one'}"


def slots_of(shared: SharedBase, setting: Setting, ranks: Sequence[int], count: int) -> list[Slot]:
    """Return runs of cycling ranks, each with its own seed and learning rate."""
    slots = []
    for index in range(count):
        config = setting.run_config
        rank = ranks[index % len(ranks)]
        config.lora = replace(config.lora, rank=rank, alpha=2.0 * rank)
        config.optim = replace(config.optim, lr=1e-3 * (1 + index % 4))
        config.seed = index
        slots.append(harness_slot(shared, config, setting.rows, f"bench{index}"))
    return slots


def step_of(shared: SharedBase, slots: Sequence[Slot], stacks: bool) -> Step:
    """Return one pass over these slots."""

    def step() -> float:
        shared.plan.stacks = stacks
        return harness_step(shared, slots)[0]

    return step


def measure(
    hidden: int, tokens: int, ranks: Sequence[int], rounds: int, most_tokens: int
) -> dict[str, Any]:
    """Interleave all passes of one amount of tokens; ratios are over the runs alone."""
    setting = setting_of(hidden, FORMATS["nf4"], tokens, 1.0, 0.5)
    shared = SharedBase(setting.base())
    shared.backend.keep_decoded(True)
    sizes = [size for size in SIZES if size * tokens <= most_tokens]
    slots = slots_of(shared, setting, ranks, max(sizes))
    passes = [(size, stacks) for size in sizes for stacks in (True, False)]
    steps = {name_of(*each): step_of(shared, slots[: each[0]], each[1]) for each in passes}
    times = {name: Times() for name in steps}
    for turn in range(rounds + 1):
        for name in steps if turn % 2 else reversed(steps):
            if turn == 0:
                steps[name]()
            else:
                times[name].run(steps[name])
    alone = times[name_of(1, True)]
    return {
        name_of(*each): times[name_of(*each)].medians(warmup=0)
        | {"over_alone": times[name_of(*each)].over(alone, warmup=0, times=each[0])}
        for each in passes
    }


def print_row(tokens: int, result: dict[str, Any]) -> None:
    """Print one line: milliseconds alone, then for each K the ratio stacked / one by one."""
    cells = [str(tokens), f"{result[name_of(1, True)]['wall_ms']:.1f}"]
    for size in SIZES[1:]:
        found = [result.get(name_of(size, stacks)) for stacks in (True, False)]
        shown = [f"{f['over_alone']['processor']['median']:.2f}" if f else "—" for f in found]
        cells.append(" / ".join(shown))
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--rounds", type=float, default=1.0, help="factor on the number of rounds")
    parser.add_argument("--most-tokens", type=int, default=65536, help="positions of a pass")
    parser.add_argument("--ranks", default="2,4,8,16", help="ranks that the runs cycle through")
    options = parser.parse_args()
    ranks = [int(rank) for rank in options.ranks.split(",")]
    torch.set_num_threads(1)  # the other cores are left to whatever else runs
    keep_freed_memory()  # as in a session
    before = load()
    print(
        "\nprocessor time of a pass of K runs over K steps alone: adapters stacked / one by one\n"
    )
    print(f"| tokens | ms alone | {' | '.join(f'K={size}' for size in SIZES[1:])} |")
    print("|" + "---:|" * (1 + len(SIZES)))
    measured = {}
    for tokens, rounds in ROUNDS_BY_TOKENS.items():
        wanted = max(4, round(rounds * options.rounds))
        measured[tokens] = measure(options.hidden, tokens, ranks, wanted, options.most_tokens)
        print_row(tokens, measured[tokens])
    result = {
        "torch_threads": torch.get_num_threads(),
        "hidden": options.hidden,
        "ranks": ranks,
        "tokens": measured,
    }
    keep("cohort", result, before)


if __name__ == "__main__":
    main()
