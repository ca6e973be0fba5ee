"""Captured steps against the reference's eager ones, in one process on one base.

    python -m bench.gpu_captured [--cases 1.5B:512:1 1.5B:2048:1 1.5B:512:16 …] [--format nf4_dq] [--profile]

A case is shape:tokens of a run and step:runs side by side[:micro-batches of a step]. Each prints and
writes one line of JSON as it ends: milliseconds of a step (median), tokens a second, the losses of both
ways over the same steps, peak memory, the host's share of a captured step, and with --profile where the
device's time goes. Results are appended to bench/.work/gpu_captured.jsonl (`--out`);
bench/results/gpu_captured.json is what was measured.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu_shapes import (
    ALPHA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    RANK,
    SHAPES,
    Shape,
    random_base,
    random_rows,
    run_config,
)
from bench.loops import Times, peft_model, plain_step, trainer_steps
from bench.step import FORMATS, harness_slot
from harness.config.resources import BackendName
from harness.config.schema import QuantConfig
from harness.data.order import batch_rows
from harness.engine.cuda.backend import CudaBackend
from harness.engine.shared_base import SharedBase
from harness.records.provenance import collect_provenance
from harness.training.slot import Slot, clip

CASES = ("1.5B:512:1", "1.5B:2048:1", "1.5B:512:16")
COMPARED, WARMUP, ROUNDS = 4, 3, 12


def slots_of(shared: SharedBase, shape: str, tokens: int, runs: int, micro: int) -> list[Slot]:
    """Return runs that differ in seed, on rows of their own order."""
    most = 2048 if shape.startswith("qwen3") else 512  # packed rows, as others measure those
    rows = random_rows(SHAPES[shape], tokens // micro, most)
    slots = []
    for index in range(runs):
        config = run_config(shared.base.quant, tokens, index)
        config.optim.batch_size = tokens // rows.row_length
        config.optim.micro_batch_size = config.optim.batch_size // micro
        slots.append(harness_slot(shared, config, rows, f"bench{index}"))
    return slots


def eager_step(shared: SharedBase, slots: list[Slot]) -> list[float]:
    """Make one step of all slots by the reference; return their losses."""
    while True:
        found = shared.backend.gradients([slot.next_work() for slot in slots])
        for slot, gradient in zip(slots, found, strict=True):
            slot.receive(gradient)
        if slots[0].step_is_complete:
            break
    losses = clip(slots)[:, 0].tolist()
    for slot in slots:
        slot.update()
    return losses


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


def times(step: Any, rounds: int, wait: Any) -> list[float]:
    """Return the seconds of each of some steps, the device's work included."""
    seconds = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - began)
    return seconds


def measured(
    case: str,
    quant_name: str,
    device: torch.device,
    *,
    profiled: bool = False,
    eager: bool = True,
    peers: bool = False,
) -> dict[str, Any]:
    """Return what one case costs both ways."""
    shape, tokens, runs, *rest = case.split(":")
    count, total, micro = int(runs), int(tokens), int(rest[0]) if rest else 1
    cuda = device.type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    began = time.perf_counter()
    base = random_base(SHAPES[shape], FORMATS[quant_name], device)
    shared = SharedBase(base, backend=BackendName.reference)
    wait()
    row: dict[str, Any] = {
        "case": case,
        "format": quant_name,
        "load_s": time.perf_counter() - began,
    }
    losses: dict[str, list[list[float]]] = {"eager": [], "captured": []}
    if eager:
        slots = slots_of(shared, shape, total, count, micro)
        for _ in range(COMPARED):
            losses["eager"].append(eager_step(shared, slots))
        eager_ms = times(lambda: eager_step(shared, slots), 4, wait)
        row["eager_step_ms"] = round(1e3 * statistics.median(eager_ms), 2)
        for slot in slots:
            shared.detach(slot.adapter)
        del slots
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    backend = CudaBackend(shared)
    slots = slots_of(shared, shape, total, count, micro)
    began = time.perf_counter()
    for slot in slots:
        backend.sit(slot.adapter, None)
    for _ in range(COMPARED):
        losses["captured"].append([n.read()[0] for n in captured_step(backend, slots)])
    wait()
    row["first_steps_s"] = round(time.perf_counter() - began, 2)
    for _ in range(WARMUP):
        captured_step(backend, slots)
    wait()
    began, host = time.perf_counter(), 0.0
    pending: list[Any] = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        numbers = captured_step(backend, slots)
        host += time.perf_counter() - before
        for number in pending:
            number.read()
        pending = numbers
    wait()
    seconds = (time.perf_counter() - began) / ROUNDS
    row["captured_step_ms"] = round(1e3 * seconds, 2)
    row["host_ms"] = round(1e3 * host / ROUNDS, 2)
    row["synced_step_ms"] = round(
        1e3 * statistics.median(times(lambda: captured_step(backend, slots), 5, wait)), 2
    )
    row["tokens_per_second"] = round(total * count / seconds)
    if cuda:
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    if eager:
        pairs = zip(losses["eager"], losses["captured"], strict=True)
        row["loss_difference"] = max(
            abs(a - b) for e, c in pairs for a, b in zip(e, c, strict=True)
        )
    row["losses"] = [each[0] for each in losses["captured"]]
    if profiled and cuda:
        row["kernels"] = kernels(lambda: captured_step(backend, slots), wait)
    for slot in slots:
        backend.leave(slot.adapter)
        shared.detach(slot.adapter)
    if peers and count == micro == 1:
        del backend, shared, base
        gc.collect()
        row |= peers_ms(SHAPES[shape], FORMATS[quant_name], total, device, wait)
    return row


def peers_ms(
    shape: Shape, quant: QuantConfig, tokens: int, device: torch.device, wait: Any
) -> dict[str, float]:
    """Return what a step of our run 0 takes a plain loop on PEFT, and the Trainer."""
    rows, size = random_rows(shape, tokens), run_config(quant, tokens, 0).optim.batch_size
    batches = [rows.batch(batch_rows(len(rows), size, 0, step)) for step in range(6)]

    def model() -> Any:
        gc.collect()
        return peft_model(random_base(shape, quant, device), RANK, int(ALPHA))

    plain = plain_step(model(), batches, LEARNING_RATE, MAX_GRAD_NORM, use_cache=False)
    plain_seconds = times(plain, len(batches), wait)
    del plain
    trainer = Times(wait)
    trainer_steps(model(), batches, trainer, lambda: None, LEARNING_RATE, MAX_GRAD_NORM)
    return {
        "plain_ms": round(1e3 * statistics.median(plain_seconds[2:]), 2),
        "trainer_ms": round(1e3 * statistics.median(trainer.wall[2:]), 2),
    }


def kernels(step: Any, wait: Any) -> dict[str, Any]:
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
        "top": [(e.key[:70], e.count, round(e.self_device_time_total / 1e3, 3)) for e in ranked],
    }


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--format", default="nf4_dq", choices=sorted(FORMATS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument(
        "--peers", action="store_true", help="a plain PEFT loop and the Trainer too"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / ".work" / "gpu_captured.jsonl"
    )
    asked = parser.parse_args()
    device = torch.device(asked.device)
    hardware = collect_provenance(model_fingerprint="", data_fingerprint="").as_tree()
    for case in asked.cases:
        try:
            row = measured(
                case,
                asked.format,
                device,
                profiled=asked.profile,
                eager=not asked.no_eager,
                peers=asked.peers,
            )
        except Exception as error:  # the next case may do
            row = {
                "case": case,
                "format": asked.format,
                "error": f"{type(error).__name__}: {error}"[:600],
            }
        print(json.dumps(row), flush=True)
        row["provenance"] = hardware
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
