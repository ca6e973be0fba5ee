"""Published memory figures beside the planner's, and how long a plan takes.

    python -m bench.plan

Nothing is fitted: each row gives the configuration as far as its source states it, the published figure and
ours. What the source does otherwise than this harness stands in `differs`. Results: bench/results/plan.json.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.measured import keep, load
from harness.commands.plan import planned_config
from harness.plan.prediction import Prediction
from harness.plan.settings import split_settings
from harness.plan.subject import subject_of

GB = 1e9

_LITGPT = ("plan.length=1304", "lora.target_modules=[q_proj,v_proj]", "lora.rank=8")
_LITGPT_DIFFERS = (
    "litgpt's resource-tables.md: Alpaca, longest row 1304 tokens; bf16-true, so that its adapter, gradients "
    "and moments are bfloat16 too; the fused kernels, logits and loss are its own"
)
_QLORA = ("plan.length=512", "lora.rank=64", "optim=paged_adamw_32bit")
_QLORA_DIFFERS = (
    "QLoRA's memory figure, batch 1, length 512, activations recomputed: its base of 5.05 GB for 7B does not "
    "follow from NF4 with double quantization and bfloat16 embeddings (3.87 GB)"
)


@dataclass(frozen=True, slots=True)
class Published:
    """One published peak."""

    source: str
    name: str
    gigabytes: float
    overrides: tuple[str, ...]
    differs: str


def _litgpt(shape: str, quant: str, rows: int, gigabytes: float) -> Published:
    overrides = (
        f"plan.shape={shape}",
        f"quant={quant}",
        f"optim.micro_batch_size={rows}",
        *_LITGPT,
    )
    name = f"{shape} {quant}, micro-batch {rows} x 1304"
    return Published("litgpt", name, gigabytes, overrides, _LITGPT_DIFFERS)


def _qlora(shape: str, gigabytes: float) -> Published:
    overrides = (
        f"plan.shape={shape}",
        *("quant=nf4_dq", "optim.micro_batch_size=1", "optim.gradient_checkpointing=true"),
        *_QLORA,
    )
    return Published("QLoRA", f"{shape} nf4_dq, 1 x 512", gigabytes, overrides, _QLORA_DIFFERS)


PUBLISHED = (
    _litgpt("llama2_7b", "none", 1, 21.30),
    _litgpt("llama2_7b", "nf4", 1, 14.14),
    _litgpt("llama2_7b", "nf4_dq", 1, 13.84),
    _litgpt("llama2_7b", "none", 2, 29.07),
    _litgpt("llama2_13b", "none", 1, 38.12),
    _litgpt("llama2_13b", "nf4", 1, 23.14),
    _litgpt("llama2_13b", "nf4_dq", 1, 22.55),
    _qlora("llama2_7b", 6.9),
    _qlora("llama2_13b", 11.3),
    _qlora("llama_33b", 24.7),
    _qlora("llama_65b", 45.0),
)


def predicted(row: Published) -> Prediction:
    """Return the planner's answer for a published configuration on a GPU."""
    settings, overrides = split_settings(["plan.device=cuda", *row.overrides])
    return subject_of(planned_config(overrides, settings), settings).predict()


def seconds_of_a_plan(repetitions: int = 5) -> list[float]:
    """Return the wall-clock of whole `harness plan` commands for a 7B shape."""
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "harness", "plan", "plan.shape=llama2_7b", "plan.device=cuda"],
            check=True,
            capture_output=True,
        )
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    """Print both tables and keep them."""
    before, rows = load(), []
    print(
        "| source | configuration | published | predicted peak | base | activations | predicted / published |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in PUBLISHED:
        ours = predicted(row)
        base = (ours.parts["base"] + ours.parts["quant_constants"]) / GB
        peak, kept = ours.peak_bytes / GB, ours.parts["activation"] / GB
        print(
            f"| {row.source} | {row.name} | {row.gigabytes:.2f} GB | {peak:.2f} GB | {base:.2f} GB | "
            f"{kept:.2f} GB | {peak / row.gigabytes:.2f} |"
        )
        rows.append(
            {
                "source": row.source,
                "configuration": row.name,
                "overrides": list(row.overrides),
                "published_bytes": row.gigabytes * GB,
                "predicted_bytes": ours.peak_bytes,
                "parts": ours.parts,
                "transient_bytes": ours.transient_bytes,
                "differs": row.differs,
            }
        )
    seconds = seconds_of_a_plan()
    print(
        f"harness plan of a 7B shape: median {statistics.median(seconds):.2f} s of {len(seconds)}"
    )
    keep("plan", {"published": rows, "plan_seconds": seconds}, before)


if __name__ == "__main__":
    main()
