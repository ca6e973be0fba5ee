"""`python -m harness.demo`: a fixed grid on the embedded base, ending in a table made from its records.

Formats × ranks × seeds, one cohort per format; then each format and rank for a few steps alone, because
what a run costs cannot be read off a process that it shares.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from analysis.frame import flat_rows
from analysis.table import comparison_table
from harness.base.source import find_model, model_fingerprint
from harness.commands.run import check, make_job, settled_record
from harness.compose import compose_run
from harness.config import RunConfig
from harness.data.check import data_fingerprint
from harness.identity import Identity, identify
from harness.record import Record
from harness.run_directory import RunDirectory

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
    alone = [
        compose_run(
            [f"quant={f}", f"lora.rank={r}", *arguments, f"optim.steps={PROBE_STEPS}", *COST_ONLY]
        )
        for f in FORMATS
        for r in RANKS
    ]
    quality = [r for cohort in _by_format(grid) for r in train_together(cohort, len(cohort))]
    cost = [r for cohort in _by_format(alone) for r in train_together(cohort, 1)]
    text = _tables(quality, cost)
    out = Path(grid[0].paths.out) / "demo"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    print(text)
    print(f"table    {out / 'table.md'}\nrecords  {Path(grid[0].paths.out) / 'runs'}")
    return 0


def _by_format(configs: Sequence[RunConfig]) -> Iterator[list[RunConfig]]:
    keys = list(dict.fromkeys((c.quant.format, c.quant.double_quant) for c in configs))
    for key in keys:
        yield [c for c in configs if (c.quant.format, c.quant.double_quant) == key]


def train_together(configs: Sequence[RunConfig], capacity: int) -> list[Record]:
    """Train runs that share model, format and data, `capacity` at a time; settled ones are only read."""
    first = configs[0]
    source = find_model(first.model)
    memo = Path(first.paths.cache or Path(first.paths.out) / "cache") / "fingerprints.json"
    fingerprint = model_fingerprint(source, memo)
    records: list[Record] = []
    waiting: list[tuple[RunConfig, Identity, RunDirectory]] = []
    for config in configs:
        check(config)
        identity = identify(
            config, model_fingerprint=fingerprint, data_fingerprint=data_fingerprint(config.data)
        )
        directory = RunDirectory(Path(config.paths.out) / "runs" / identity.run_id)
        settled = settled_record(directory)
        if settled is None:
            waiting.append((config, identity, directory))
        else:
            records.append(settled)
    if not waiting:
        return records

    from harness.training.launch import open_base, prepare
    from harness.training.session import RunEnded, train
    from harness.training.stop import stop_on_signals

    shared = open_base(first, source, fingerprint)
    with ExitStack() as held, stop_on_signals() as stop:
        for _, _, directory in waiting:
            held.enter_context(directory.lock())
        jobs = (
            make_job(c, i, d, fingerprint, prepare(c, source, fingerprint).data)
            for c, i, d in waiting
        )
        for event in train(shared, jobs, capacity=capacity, stop=stop):
            if isinstance(event, RunEnded):
                records.append(event.record)
                print(f"{event.record.run_id}  {event.record.status.value}", file=sys.stderr)
    if stop:
        raise KeyboardInterrupt
    return records


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
