"""`python -m harness.demo`: a fixed grid on the embedded base, ending in a table made from its records.

Formats × ranks × seeds, one cohort per format; then each format and rank for a few steps alone, because
what a run costs cannot be read off a process that it shares.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.frame import flat_rows
from analysis.table import comparison_table
from harness.commands.together import run_together
from harness.compose import compose_run
from harness.record import Record

FORMATS = ("none", "nf4", "nf4_dq", "int4")
RANKS = (2, 8)
SEEDS = (0, 1)
PROBE_STEPS = 12
COST_ONLY = ("eval=loss", "eval.before=false", "tracker=none")
GROUP_BY = ("quant.format", "quant.double_quant", "lora.rank")


def main(arguments: Sequence[str]) -> int:
    """Run the grid, print the two tables, and keep them under <out>/demo/; overrides reach every run."""
    grid = [
        compose_run([f"quant={f}", f"lora.rank={r}", f"seed={s}", *arguments])
        for f in FORMATS
        for r in RANKS
        for s in SEEDS
    ]
    training = [a for a in arguments if not a.startswith("eval")]
    alone = [
        compose_run(
            [f"quant={f}", f"lora.rank={r}", *training, f"optim.steps={PROBE_STEPS}", *COST_ONLY]
        )
        for f in FORMATS
        for r in RANKS
    ]
    quality = run_together(grid, capacity=len(RANKS) * len(SEEDS))
    cost = run_together(alone, capacity=1)
    text = _tables(quality, cost)
    out = Path(grid[0].paths.out) / "demo"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    print(text)
    print(f"table    {out / 'table.md'}\nrecords  {Path(grid[0].paths.out) / 'runs'}")
    return 0


def _tables(quality: list[Record], cost: list[Record]) -> str:
    seeds = ", ".join(map(str, SEEDS))
    return "\n".join(
        [
            f"Quality after fine-tuning, mean ± standard deviation over seeds {seeds}:\n",
            comparison_table(
                flat_rows(quality),
                group_by=GROUP_BY,
                columns=(
                    "before.eval/loss",
                    "after.eval/loss",
                    "before.eval/exact_match",
                    "after.eval/exact_match",
                    "base/bits_per_param",
                ),
            ),
            f"Cost of one run alone ({PROBE_STEPS} steps in a process that trains nothing else):\n",
            comparison_table(
                flat_rows(cost),
                group_by=GROUP_BY,
                columns=(
                    "adapter/trainable_params",
                    "memory/peak_bytes",
                    "throughput/input_tokens_per_second",
                    "throughput/step_ms",
                ),
            ),
        ]
    )


if __name__ == "__main__":
    from harness.cli import exit_code_of

    sys.exit(exit_code_of(lambda: main(sys.argv[1:])))
