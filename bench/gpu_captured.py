"""Captured steps against the reference's eager ones, on random models of common sizes.

    python -m bench.gpu_captured                      the whole table: each part in a process of its own
    python -m bench.gpu_captured --cases 1.5B:512:16 [--format int4] [--only captured trainer …] [--profile]

A case is shape:tokens of a run and step:runs side by side[:micro-batches of a step]. Each prints and
writes one line of JSON as it ends: milliseconds of a step, tokens a second, how far its losses are from the
eager ones beside what moves those themselves (computed again, beside a neighbour, adapters in 16 bits) and,
with `truth`, how far both are from the same steps in float32, peak memory beside the planner's, the host's
share, and with --profile where the device's time goes. A part of the table that takes longer than its limit
is ended, and what it has written stays. Results are appended to
bench/.work/gpu_captured.jsonl (`--out`); bench/results/gpu_captured.json is what was measured.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.loops import (
    Times,
    harness_slot,
    harness_step,
    peft_model,
    plain_step,
    trainer_steps,
)
from bench.measured import BENCH, append
from bench.shapes import FORMATS, SHAPES
from harness.base.source import ModelSource
from harness.config.resources import BackendName
from harness.config.schema import FloatType, LoraConfig, ModelConfig, OptimConfig, RunConfig
from harness.data.order import batch_rows
from harness.engine.cuda.backend import CudaBackend
from harness.engine.cuda.decoding import DecodingSize
from harness.engine.shared_base import SharedBase
from harness.plan.model import PlannedModel
from harness.plan.predict import predict
from harness.plan.prediction import BatchSize
from harness.training.slot import Slot

RANK, ALPHA, LEARNING_RATE, MAX_GRAD_NORM = 16, 32.0, 1e-4, 0.3
ROWS = 256
"""Rows that there are; batches are drawn from them."""
COMPARED, WARMUP, ROUNDS = 4, 3, 12
NEW_TOKENS = 48
"""Of an answer."""
PEERS = ("plain", "trainer", "unsloth")
TABLE: tuple[tuple[int, str], ...] = (
    (75, "--cases 1.5B:512:1 1.5B:2048:1 --only eager captured truth --profile"),
    (40, "--cases 1.5B:512:16 --only eager captured"),
    (40, "--cases gemma3_1b:512:1 phi3_mini:512:1 --only eager captured truth"),
    (25, "--cases 1.5B:512:1 1.5B:2048:1 --only captured --format int4"),
    (40, "--cases qwen3_1.7b:16384:1:4 qwen3_0.6b:16384:1:4 --only captured"),
    (60, "--cases qwen3_8b:16384:1:4 --only captured"),
    (45, "--cases 1.5B:512:1 --only plain trainer unsloth"),
    (30, "--cases 1.5B:512:1 1.5B:512:8 --only decoding"),
    (50, "--peaks"),
)
"""Seconds that a part may take, and what it is; the most important first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured."""

    name: str
    shape: str
    tokens: int
    """Of a run and step."""
    runs: int
    micro: int
    """Micro-batches of a step."""
    format: str
    device: torch.device

    @classmethod
    def parse(cls, text: str, quant: str, device: torch.device) -> "Case":
        """Return the case of `shape:tokens:runs[:micro]`."""
        shape, tokens, runs, *rest = text.split(":")
        micro = int(rest[0]) if rest else 1
        return cls(
            name=text, shape=shape, tokens=int(tokens), runs=int(runs), micro=micro, format=quant,
            device=device,
        )  # fmt: skip

    @property
    def row_length(self) -> int:
        """Positions of a row: packed rows of 2,048 for Qwen 3, as others measure those."""
        most = 2048 if self.shape.startswith("qwen3") else 512
        return min(self.tokens // self.micro, most)

    def config(self, seed: int) -> RunConfig:
        """Return the configuration of one run."""
        rows = self.tokens // self.row_length
        return RunConfig(
            quant=FORMATS[self.format],
            lora=LoraConfig(rank=RANK, alpha=ALPHA),
            optim=OptimConfig(
                lr=LEARNING_RATE,
                max_grad_norm=MAX_GRAD_NORM,
                batch_size=rows,
                micro_batch_size=rows // self.micro,
                steps=10_000,
            ),
            seed=seed,
        )

    def base(self, compute: FloatType | None = None) -> SharedBase:
        """Return the base, computed by the reference until a backend is made for it."""
        default = FloatType.bfloat16 if self.device.type == "cuda" else FloatType.float32
        quant = replace(FORMATS[self.format], compute_dtype=compute or default)
        base = SHAPES[self.shape].base(quant, self.device)
        return SharedBase(base, backend=BackendName.reference)

    def slots(self, shared: SharedBase, runs: int, lora: LoraConfig | None = None) -> list[Slot]:
        """Return runs that differ in seed, on rows of their own order."""
        rows = SHAPES[self.shape].rows(ROWS, self.row_length)
        slots = []
        for index in range(runs):
            config = self.config(index)
            config.quant = shared.base.quant
            config.lora = lora or config.lora
            slots.append(harness_slot(shared, config, rows, f"bench{index}"))
        return slots

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Give back what is free, and forget the peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Return the allocator's peak since `forget`."""
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 3)


def planned_peak(case: Case, lora: LoraConfig | None = None, *, recompute: bool = False) -> int:
    """Return the peak in bytes that the planner expects of a case's captured steps."""
    source = ModelSource(name=case.shape, directory=None, revision=None)
    model = PlannedModel(SHAPES[case.shape].config(), source, ModelConfig())
    config = case.config(0)
    config.quant = replace(config.quant, compute_dtype=FloatType.bfloat16)
    config.lora = replace(lora or config.lora, compute_dtype=FloatType.bfloat16)
    config.optim.gradient_checkpointing = recompute
    rows = config.optim.micro_batch_size
    assert rows is not None
    batch = BatchSize(rows, case.row_length, rows * (case.row_length - case.row_length // 2 - 1))
    return predict(model, config, batch, cohort=case.runs, device="cuda").peak_bytes


# Steps -------------------------------------------------------------------------------------------


def captured_step(backend: CudaBackend, slots: list[Slot]) -> list[Any]:
    """Give the device one step of all slots; return what will tell their losses."""
    while True:
        backend.add_pass([slot.next_work() for slot in slots])
        for slot in slots:
            slot.passed()
        if slots[0].step_is_complete:
            break
    numbers = backend.update([slot.next_step() for slot in slots])
    for slot in slots:
        slot.progress.step += 1
    return numbers


def times(step: Callable[[], Any], rounds: int, wait: Callable[[], None]) -> list[float]:
    """Return the seconds of each of some steps, the device's work included."""
    seconds = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - began)
    return seconds


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 2)


# Parts of a case ---------------------------------------------------------------------------------


def eager(case: Case, shared: SharedBase) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return run 0's losses in eager steps by the type of the adapters' products, and what those cost and are
    moved by."""

    def losses(runs: int, lora: LoraConfig | None = None) -> list[float]:
        slots = case.slots(shared, runs, lora)
        found = [harness_step(shared, slots)[0] for _ in range(COMPARED)]
        for slot in slots:
            shared.detach(slot.adapter)
        return found

    slots = case.slots(shared, case.runs)
    first = [harness_step(shared, slots)[0] for _ in range(COMPARED)]
    seconds = times(lambda: harness_step(shared, slots), 4, case.wait)
    for slot in slots:
        shared.detach(slot.adapter)
    half = replace(case.config(0).lora, compute_dtype=shared.base.quant.compute_dtype)
    narrow = losses(case.runs, half)
    moved = {
        "again": _apart(first, losses(case.runs)),
        "beside one more": _apart(first, losses(case.runs + 1)),
        "adapters in 16 bits": _apart(first, narrow),
        "both": _apart(narrow, losses(case.runs + 1, half)),
    }
    return {"eager": first, "eager, adapters in 16 bits": narrow}, {
        "eager_step_ms": _milliseconds(statistics.median(seconds)),
        "eager_loss_moves": moved,
    }


def truth(case: Case) -> list[float]:
    """Return run 0's losses in eager steps that compute everything in float32, of the same packed weights."""
    shared = case.base(FloatType.float32)
    slots = case.slots(shared, case.runs)
    return [harness_step(shared, slots)[0] for _ in range(COMPARED)]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def captured(case: Case, shared: SharedBase, *, profiled: bool) -> tuple[list[float], dict]:
    """Return run 0's losses in captured steps, and what those cost."""
    case.forget()
    backend = CudaBackend(shared)
    slots = case.slots(shared, case.runs)
    began = time.perf_counter()
    for slot in slots:
        backend.sit(slot.adapter, None)
    losses = [captured_step(backend, slots)[0].read()[0] for _ in range(COMPARED)]
    case.wait()
    row: dict[str, Any] = {"first_steps_s": round(time.perf_counter() - began, 2)}
    for _ in range(WARMUP):
        captured_step(backend, slots)
    seconds, host = _in_a_row(case, backend, slots)
    row["captured_step_ms"], row["host_ms"] = _milliseconds(seconds), _milliseconds(host)
    synced = times(lambda: captured_step(backend, slots), 5, case.wait)
    row["synced_step_ms"] = _milliseconds(statistics.median(synced))
    row["tokens_per_second"] = round(case.tokens * case.runs / seconds)
    row["peak_gib"] = case.peak_gib()
    row["planned_gib"] = round(planned_peak(case) / 2**30, 3)
    if profiled and case.device.type == "cuda":
        row["kernels"] = kernels(lambda: captured_step(backend, slots), case.wait)
    for slot in slots:
        backend.leave(slot.adapter)
        shared.detach(slot.adapter)
    return losses, row


def decoding(case: Case, shared: SharedBase) -> dict[str, Any]:
    """Return the milliseconds of a token of 32 answers by each run, in seats and by the model."""
    backend, slots = CudaBackend(shared), case.slots(shared, case.runs)
    adapters = [slot.adapter for slot in slots]
    for adapter in adapters:
        backend.sit(adapter, None)
    prompts = SHAPES[case.shape].rows(ROWS, case.row_length).input_ids_NT[:32, :64].tolist()
    size = DecodingSize(rows=len(prompts), length=64 + NEW_TOKENS, new_tokens=NEW_TOKENS)
    at_once = adapters[: backend.adapters_at_once(size)]
    captured_s = times(lambda: backend.answers(at_once, prompts, size, []), 3, case.wait)
    ids = torch.tensor(prompts * len(at_once), device=case.device)

    def by_model() -> None:
        with shared.side_by_side(at_once, len(prompts)):
            shared.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                pad_token_id=0,
            )

    shared.model.eval()
    model_s = times(by_model, 2, case.wait)
    for adapter in adapters:
        backend.leave(adapter)
        shared.detach(adapter)
    return {
        "decoded_at_once": len(at_once),
        "captured_token_ms": _milliseconds(captured_s[-1] / NEW_TOKENS),
        "model_token_ms": _milliseconds(model_s[-1] / NEW_TOKENS),
    }


def _in_a_row(case: Case, backend: CudaBackend, slots: list[Slot]) -> tuple[float, float]:
    """Return the seconds of a step, and those of the host, where numbers are read a step later."""
    case.wait()
    began, host, pending = time.perf_counter(), 0.0, []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        numbers = captured_step(backend, slots)
        host += time.perf_counter() - before
        for number in pending:
            number.read()
        pending = numbers
    case.wait()
    return (time.perf_counter() - began) / ROUNDS, host / ROUNDS


def kernels(step: Callable[[], Any], wait: Callable[[], None]) -> dict[str, Any]:
    """Return where the device's time goes in one step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        wait()
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    ranked = sorted(events, key=lambda e: -e.self_device_time_total)[:16]
    return {
        "total_ms": round(sum(e.self_device_time_total for e in events) / 1e3, 2),
        "launches": sum(e.count for e in events),
        "casts": sum(e.count for e in events if "copy" in e.key.lower()),
        "top": [(e.key[:70], e.count, round(e.self_device_time_total / 1e3, 3)) for e in ranked],
    }


def peer(name: str, case: Case) -> float | None:
    """Return the milliseconds of a step of our run 0 in a peer's loop; None where it is not installed."""
    rows, size = SHAPES[case.shape].rows(ROWS, case.row_length), case.config(0).optim.batch_size
    batches = [rows.batch(batch_rows(len(rows), size, 0, step)) for step in range(6)]
    if name == "unsloth":
        try:
            import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports]  patches what is imported
        except ImportError:
            return None
    case.forget()
    model = peft_model(case.base().base, RANK, int(ALPHA))
    if name == "plain":
        step = plain_step(model, batches, LEARNING_RATE, MAX_GRAD_NORM, use_cache=False)
        seconds = times(step, len(batches), case.wait)
    else:
        taken = Times(case.wait)
        trainer_steps(model, batches, taken, lambda: None, LEARNING_RATE, MAX_GRAD_NORM)
        seconds = taken.wall
    return _milliseconds(statistics.median(seconds[2:]))


def measured(case: Case, only: Sequence[str], *, profiled: bool) -> dict[str, Any]:
    """Return what one case costs in the ways that are asked for."""
    row: dict[str, Any] = {"case": case.name, "format": case.format}
    losses: dict[str, list[float]] = {}
    if not set(only).isdisjoint(("eager", "captured", "decoding")):
        shared = case.base()
        if "eager" in only:
            losses, costs = eager(case, shared)
            row |= costs
        if "captured" in only:
            losses["captured"], costs = captured(case, shared, profiled=profiled)
            row |= costs | {"losses": losses["captured"]}
        if "decoding" in only:
            row |= decoding(case, shared)
        if "captured" in losses:
            other = {way: found for way, found in losses.items() if way != "captured"}
            apart = {way: _apart(found, losses["captured"]) for way, found in other.items()}
            row["loss_difference"] = apart
        del shared
        if "truth" in only:
            case.forget()
            true = truth(case)
            row["from_float32"] = {way: _apart(found, true) for way, found in losses.items()}
    for name in PEERS:
        if name in only:
            row[f"{name}_ms"] = peer(name, case)
    return row


# Peaks -------------------------------------------------------------------------------------------


def peaks(device: torch.device) -> list[dict[str, Any]]:
    """Return measured and planned peaks of 24 configurations of captured steps."""
    found = []
    loras = [
        LoraConfig(rank=rank, alpha=16.0, target_modules=targets)
        for rank, targets in ((4, ["q_proj", "v_proj"]), (16, ["all_linear"]), (64, ["all_linear"]))
    ]
    for text in ("0.5B:512:1", "0.5B:2048:1", "0.5B:2048:1:2", "0.5B:512:4"):
        for recompute in (False, True):
            case = Case.parse(text, "nf4_dq", device)
            shared = case.base()
            for lora in loras:
                row = {"case": text, "rank": lora.rank, "recompute": recompute}
                found.append(row | _peak(case, shared, lora, recompute=recompute))
            del shared
    return found


def _peak(
    case: Case, shared: SharedBase, lora: LoraConfig, *, recompute: bool
) -> dict[str, float | None]:
    case.forget()
    backend, slots = CudaBackend(shared), case.slots(shared, case.runs, lora)
    for slot in slots:
        slot.config.optim.gradient_checkpointing = recompute
        backend.sit(slot.adapter, None)
    for _ in range(3):
        captured_step(backend, slots)
    case.wait()
    peak = case.peak_gib()
    for slot in slots:
        backend.leave(slot.adapter)
        shared.detach(slot.adapter)
    planned = planned_peak(case, lora, recompute=recompute) / 2**30
    return {"peak_gib": peak, "planned_gib": round(planned, 3)}


# The table ---------------------------------------------------------------------------------------


def whole_table(options: Sequence[str]) -> None:
    """Measure all parts, each in a process of its own and within its limit."""
    for limit, part in TABLE:
        command = [sys.executable, "-m", "bench.gpu_captured", *part.split(), *options]
        try:
            subprocess.run(command, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            print(json.dumps({"part": part, "ended_after_s": limit}), flush=True)


def main() -> None:
    """Measure what is asked for, or the whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=["eager", "captured"])
    parser.add_argument("--format", default="nf4_dq", choices=sorted(FORMATS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--peaks", action="store_true", help="24 measured peaks beside planned ones"
    )
    parser.add_argument("--out", type=Path, default=BENCH / ".work" / "gpu_captured.jsonl")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if not asked.cases and not asked.peaks:
        whole_table(["--device", asked.device, "--out", str(asked.out)])
        return
    for text in asked.cases:
        case = Case.parse(text, asked.format, device)
        try:
            row = measured(case, asked.only, profiled=asked.profile)
        except Exception as error:  # the next case may do
            row = {
                "case": text,
                "format": asked.format,
                "error": f"{type(error).__name__}: {error}"[:600],
            }
        append(asked.out, row)
        with suppress(Exception):  # a device that is lost has been said
            case.forget()
    for row in peaks(device) if asked.peaks else ():
        append(asked.out, row)


if __name__ == "__main__":
    main()
