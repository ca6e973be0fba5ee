"""`python -m bench.formats MODEL TRAIN VALIDATION [override…]`: every storage format on the same fine-tuning.

Writes bench/results/formats.json and prints the README's table. A run that is already in bench/.work is read,
not trained again, so the bench can be stopped and continued.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands.run import run
from harness.config.compose import compose_run
from harness.records.metrics import METRICS, format_value
from harness.records.record import Record

FORMATS = (
    *("none", "int8", "nf4", "nf4_dq", "fp4", "fp4_dq", "fp4_e2m1", "fp4_e3m0"),
    *("int4", "int4_dq", "int4_asym", "int4_asym_dq"),
)
COMMON = (
    "data=alpaca",
    "data.max_length=256",
    "data.validation_rows=200",
    "lora=all_linear",
    "lora.rank=8",
    "optim.lr=5e-3",
    "optim.steps=200",
    "optim.batch_size=16",
    "eval=loss",
    "tracker=none",
    "paths.out=bench/.work",
    "quant.compute_dtype=float32",
)
COST = ("base/bits_per_param", "memory/base_bytes", "throughput/input_tokens_per_second")


def main(model: str, train: str, validation: str, overrides: Sequence[str]) -> None:
    """Run every format and print the table."""
    rows = {}
    for name in FORMATS:
        paths = [f"model='{model}'", f"data.path='{train}'", f"data.validation_path='{validation}'"]
        record, _ = run(compose_run([*COMMON, *paths, f"quant={name}", *overrides]))
        rows[name] = record
    results = Path("bench/results/formats.json")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(_as_json(rows), indent=1) + "\n")
    print(_table(rows))


def _loss(record: Record, phase: str) -> str:
    result = record.evals[phase]["eval/loss"]
    assert result.standard_error is not None
    return f"{result.value:.3f} ± {result.standard_error:.3f}"


def _table(rows: dict[str, Record]) -> str:
    headings = ["quant", "loss before", "loss after", *(METRICS[name].label for name in COST)]
    lines = [headings, ["---", *(["---:"] * (len(headings) - 1))]]
    for name, record in rows.items():
        cost = [format_value(metric, record.metrics.get(metric)) for metric in COST]
        lines.append([name, _loss(record, "before"), _loss(record, "after"), *cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_json(rows: dict[str, Record]) -> dict[str, object]:
    first = next(iter(rows.values()))
    machine = {key: first.provenance[key] for key in ("cpu", "cpu_cores", "ram_bytes", "packages")}
    runs = {
        name: {
            "run_id": record.run_id,
            "status": record.status.value,
            "started_at": record.started_at,
            "wall_seconds": record.wall_seconds,
            "metrics": record.metrics,
            "evals": {
                phase: {metric: [e.value, e.standard_error, e.n] for metric, e in results.items()}
                for phase, results in record.evals.items()
            },
        }
        for name, record in rows.items()
    }
    return {"settings": COMMON, "machine": machine, "runs": runs}


if __name__ == "__main__":
    main(*sys.argv[1:4], overrides=sys.argv[4:])
