"""A sweep of 16 runs on a GPU against 16 processes of transformers' Trainer, from a shell, imports and all.

    python -m bench.gpu_sweep [--shape 1.5B] [--steps 150] [--trainers 1]

A Llama of random weights is written to disk. `harness sweep` trains a grid of 4 ranks by 4 learning rates on
it, 512 tokens a step and run, each evaluated before it ends, each configuration's cost probed alone; the
Trainer's processes load the same files in NF4 with double quantization, train as many steps of as many tokens
in bfloat16 and save the adapter. `--trainers` of the 16 are run, one after another; the rest is taken to cost
as much. One line of JSON, also appended to bench/.work/gpu_sweep.jsonl (`--out`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from bench.gpu_captured import MAX_GRAD_NORM, ROWS
from bench.loops import Times, trainer_steps
from bench.measured import BENCH, append
from bench.shapes import SHAPES
from bench.sweep import RANKS, RATES, harness, write_question
from harness.base.source import find_model
from harness.config.schema import ModelConfig
from harness.data.order import batch_rows
from harness.records.record import read_records

TOKENS = 512
RUNS = len(RANKS) * len(RATES)


def write_model(shape: str, directory: Path) -> None:
    """Write a random model with the embedded base's tokenizer, whose tokens are fewer than it knows."""
    from transformers import AutoModelForCausalLM

    from harness.embedded.tokenizer import BOS_ID, EOS_ID, PAD_ID, load_tokenizer

    embedded = find_model(ModelConfig()).directory
    assert embedded is not None
    config = SHAPES[shape].config()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS_ID, EOS_ID, PAD_ID
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.cpu().save_pretrained(directory)
    load_tokenizer(embedded).save_pretrained(directory)


def write_rows(file: Path) -> None:
    """Write rows that are longer than a step's tokens, so that each is cut to them."""
    text = " ".join(f"the {n} th word of row" for n in range(TOKENS))
    lines = (json.dumps({"prompt": f"row {n}", "response": text}) for n in range(320))
    file.write_text("".join(f"{line}\n" for line in lines))


def by_sweep(directory: Path, steps: int) -> dict[str, Any]:
    """Return the seconds of the sweep, where they went, and what its worker says of the runs side by side."""
    base = [
        "tracker=none", f"model.name={directory / 'model'}",
        "data=pairs", f"data.path={directory / 'rows.jsonl'}",
        f"data.max_length={TOKENS}", "data.validation_rows=32", "data.test_rows=8",
        "optim.batch_size=1", f"optim.steps={steps}", "quant=nf4_dq", "lora=all_linear",
        "eval=loss", "eval.before=false", f"paths.out={directory / 'out'}",
    ]  # fmt: skip
    file, began = write_question(directory, "sixteen", base), time.time()
    seconds = harness(["sweep", str(file)])
    state = json.loads((directory / "out" / "sweeps" / "sixteen" / "state.json").read_text())
    assert [run["status"] for run in state["runs"]].count("completed") >= RUNS, state["runs"]
    return {
        "sweep_s": round(seconds, 1),
        "warm_s": round(max(device["seconds"] for device in state["devices"]), 1),
        "packing": "; ".join(device["packing"] for device in state["devices"]),
        "first_and_last_s": spans(directory / "out", began),
    }


def spans(out: Path, began: float) -> dict[str, tuple[float, float]]:
    """Return when the first run of each role began and the last one ended, in seconds of the sweep."""
    found: dict[str, tuple[float, float]] = {}
    for record in read_records(out)[0]:
        role = record.provenance["sweep"]["role"]
        start = datetime.fromisoformat(record.started_at).timestamp() - began
        end = start + (record.wall_seconds or 0.0)
        first, last = found.get(role, (start, end))
        found[role] = round(min(first, start), 1), round(max(last, end), 1)
    return found


def by_trainer(directory: Path, shape: str, steps: int, number: int) -> float:
    """Return the seconds of one of the Trainer's processes."""
    rank, rate = RANKS[number // len(RATES)], RATES[number % len(RATES)]
    command = [sys.executable, "-m", "bench.gpu_sweep", "--shape", shape, "--steps", str(steps)]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--train", str(directory), "--rank", str(rank), "--rate", str(rate)], check=True
    )
    return time.perf_counter() - began


def train(directory: Path, shape: str, steps: int, rank: int, rate: float) -> None:
    """Train one adapter as the libraries' documentation shows it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=torch.bfloat16, quantization_config=quantized
    )
    lora = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    rows = SHAPES[shape].rows(ROWS, TOKENS)
    batches = [rows.batch(batch_rows(len(rows), 1, 0, step)) for step in range(steps)]
    trainer_steps(model, batches, Times(lambda: None), lambda: None, rate, MAX_GRAD_NORM)
    model.save_pretrained(str(directory / f"adapter-{rank}-{rate}"))


def main() -> None:
    """Measure, or be one of the Trainer's processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="1.5B", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--trainers", type=int, default=1)
    parser.add_argument("--train", type=Path, help="be a Trainer's process, on this directory")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=BENCH / ".work" / "gpu_sweep.jsonl")
    asked = parser.parse_args()
    if asked.train is not None:
        train(asked.train, asked.shape, asked.steps, asked.rank, asked.rate)
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_model(asked.shape, directory / "model")
        write_rows(directory / "rows.jsonl")
        row: dict[str, Any] = {"shape": asked.shape, "steps": asked.steps, "runs": RUNS}
        row |= by_sweep(directory, asked.steps)
        print(json.dumps(row), flush=True)
        alone = [
            by_trainer(directory, asked.shape, asked.steps, number)
            for number in range(asked.trainers)
        ]
    row["trainer_s"] = [round(each, 1) for each in alone]
    row["trainers_over_sweep"] = round(RUNS * sum(alone) / len(alone) / row["sweep_s"], 1)
    append(asked.out, row)


if __name__ == "__main__":
    main()
