"""What training costs on a GPU: a run against the Trainer, a cohort against runs alone, a step's floor.

    python -m bench.gpu [--shapes 0.5B 1.5B 7B] [--formats nf4 nf4_dq int4 none] [--tokens …] [--sizes …]
    python -m bench.gpu --device cpu --shapes toy       # the same code where there is no GPU

Random-weight Llamas, LoRA rank 16 on all linear layers, loss on half of the positions, rows of at most 512
tokens. For each shape and format:

- `solo`: our step, a plain loop on PEFT and transformers.Trainer, in turns, at each number of tokens;
- `cohort`: a pass of K runs over K steps of a run alone, in turns, and the peak memory of each pass;
- `profile`: the kernels that a step spends its time in;
- `floor`: the products of the frozen layers at the rate measured for their sizes, plus the bytes of packed
  and decoded weights at the measured bandwidth; the table shows our step over it.

Results: bench/results/gpu.json (cpu: bench/.work/gpu_cpu.json), written after each shape and format.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from bench.gpu_models import SHAPES, Shape, random_base, random_rows, run_config
from bench.gpu_peers import plain_step, trainer_steps
from bench.step import FORMATS, Step, harness_slot, harness_step
from harness.config.schema import QuantConfig
from harness.engine.shared_base import SharedBase
from harness.errors import RequestError
from harness.measure.floor import StepSize, step_floor
from harness.measure.memory import is_out_of_memory
from harness.measure.rates import DeviceRates
from harness.records.provenance import collect_provenance
from harness.records.run_directory import utc_now, write_text
from harness.training.slot import Slot

TOKENS = (128, 256, 512, 1024, 2048, 4096)
SIZES = (1, 2, 4, 8, 16, 32)
WARMUP, ROUNDS = 2, 8
MOST_POSITIONS = 65536
"""Of a pass; larger ones stopped paying long before."""
PROFILED_TOKENS = 512
SAME_LOSS = {"cpu": 1e-4, "cuda": 5e-2}
"""Nats that two loops may differ by in float32 and in bfloat16."""

_RESULTS = Path(__file__).parent / "results" / "gpu.json"
_CPU_RESULTS = Path(__file__).parent / ".work" / "gpu_cpu.json"


class Clock:
    """Times steps on one device, the device's own queue included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, step: Callable[[], object]) -> float:
        """Return what one step takes."""
        self.synchronise()
        began = time.perf_counter()
        step()
        self.synchronise()
        return time.perf_counter() - began

    def peak_bytes(self, step: Step) -> int | None:
        """Return the allocator's peak in one step; None where there is no such allocator."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        return torch.cuda.max_memory_allocated(self.device)


class Turns:
    """Steps that are made one after the other, their times and their losses."""

    def __init__(self, clock: Clock, steps: dict[str, Step]) -> None:
        self.spent: dict[str, list[float]] = {name: [] for name in steps}
        self._losses: dict[str, list[float]] = {name: [] for name in steps}
        self._clock = clock
        self._steps = steps

    def take(self) -> None:
        """Make each step once."""
        for name, step in self._steps.items():
            losses = self._losses[name]
            self.spent[name].append(self._clock.seconds(lambda s=step, k=losses: k.append(s())))

    def check_losses(self) -> None:
        """Assert that all have done the same work."""
        first, *others = self._losses.values()
        for losses in others:
            worst = max(abs(a - b) for a, b in zip(first, losses, strict=True))
            assert worst <= SAME_LOSS[self._clock.device.type], self._losses


def in_turns(
    clock: Clock, steps: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Make every step once a round, every other round backwards; returns the seconds after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARMUP + rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            spent = clock.seconds(steps[name])
            if turn >= WARMUP:
                seconds[name].append(spent)
    return seconds


def slots_of(shared: SharedBase, shape: Shape, tokens: int, count: int) -> list[Slot]:
    """Return runs that differ in seed and learning rate, on rows of their own order."""
    rows = random_rows(shape, tokens)
    configs = [run_config(shared.base.quant, tokens, index) for index in range(count)]
    return [harness_slot(shared, config, rows, f"bench{i}") for i, config in enumerate(configs)]


def solo(
    clock: Clock, shape: Shape, quant: QuantConfig, tokens: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Compare one run's step with the plain loop's and the Trainer's; each has a base of its own."""
    found: dict[str, Any] = {}
    for count in tokens:
        gc.collect()  # the Trainer of the round before is held by cycles
        shared = SharedBase(random_base(shape, quant, clock.device))
        slot, weighed = slots_of(shared, shape, count, 2)
        peak_bytes = clock.peak_bytes(harness_step(shared, [weighed]))  # before there are others
        shared.detach(weighed.adapter)
        ours = harness_step(shared, [slot])
        plain = plain_step(shape, quant, count, clock.device)
        turns = Turns(clock, {"harness": ours, "plain": plain})
        trainer = trainer_steps(shape, quant, count, clock, WARMUP + rounds, turns.take)
        turns.check_losses()
        spent = {n: seconds[WARMUP:] for n, seconds in (turns.spent | {"trainer": trainer}).items()}
        found[str(count)] = {
            "step_ms": {name: 1e3 * statistics.median(s) for name, s in spent.items()},
            "tokens_per_second": count / statistics.median(spent["harness"]),
            "over": {
                name: statistics.median(
                    b / a for a, b in zip(spent["harness"], spent[name], strict=True)
                )
                for name in ("plain", "trainer")
            },
            "peak_bytes": peak_bytes,
        }
    return found


def cohort(
    clock: Clock, shared: SharedBase, shape: Shape, tokens: int, sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Compare passes of K runs with K steps of one run; sizes that do not fit are named."""
    fitting = [size for size in sizes if size * tokens <= MOST_POSITIONS]
    slots = slots_of(shared, shape, tokens, max(fitting))
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {}
    try:
        for size in fitting:
            step = harness_step(shared, slots[:size])
            try:
                step()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                found[str(size)] = "out of memory"
                break
            steps[str(size)] = step
        spent = in_turns(clock, steps, rounds)
        for size, seconds in spent.items():
            speedup = [int(size) * a / b for a, b in zip(spent["1"], seconds, strict=True)]
            found[size] = {
                "pass_ms": 1e3 * statistics.median(seconds),
                "speedup": statistics.median(speedup),
                "peak_bytes": clock.peak_bytes(cast(Step, steps[size])),
            }
    finally:
        for slot in slots:
            shared.detach(slot.adapter)
    return found


def profile(clock: Clock, shared: SharedBase, shape: Shape, tokens: int) -> list[dict[str, Any]]:
    """Return the kernels (operators, on a CPU) in which a step of one run spends its time, largest first."""
    from torch.profiler import ProfilerActivity, schedule
    from torch.profiler import profile as profiler

    slots = slots_of(shared, shape, tokens, 1)
    step = harness_step(shared, slots)
    activities = [ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if clock.device.type == "cuda":
        activities, key = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    with profiler(activities=activities, schedule=schedule(wait=2, warmup=1, active=3)) as watched:
        for _ in range(6):
            clock.seconds(step)
            watched.step()
    shared.detach(slots[0].adapter)
    events = [e for e in watched.key_averages() if not e.key.startswith("ProfilerStep")]
    total = sum(getattr(event, key) for event in events)
    largest = sorted(events, key=lambda event: -getattr(event, key))[:15]
    return [
        {"name": e.key, "calls": e.count // 3, "share": getattr(e, key) / total} for e in largest
    ]


def measure(
    clock: Clock, shape: Shape, quant: QuantConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one shape in one format."""
    found: dict[str, Any] = {"solo": solo(clock, shape, quant, options.tokens, options.rounds)}
    shared = SharedBase(random_base(shape, quant, clock.device))
    rates = DeviceRates(clock.device, None)
    found["floor"] = {}
    for count in options.tokens:
        size = StepSize(micro_batches=1, input_tokens=count, loss_tokens=count / 2)
        floor = step_floor(shared.base, rates, size, decodes=True)
        found["floor"][str(count)] = {
            "floor_ms": floor.total_ms,
            "products_ms": floor.products_ms,
            "weights_ms": floor.decoding_ms,
            "step_ms": found["solo"][str(count)]["step_ms"]["harness"],
        }
    found["rates"] = rates.known()
    found["cohort"] = {
        str(count): cohort(clock, shared, shape, count, options.sizes, options.rounds)
        for count in options.tokens
    }
    found["profile"] = profile(clock, shared, shape, min(PROFILED_TOKENS, max(options.tokens)))
    return found


def print_rows(name: str, found: dict[str, Any], sizes: Iterable[int]) -> None:
    """Print a line for each number of tokens."""
    for tokens, alone in found["solo"].items():
        speedups = []
        for size in sizes:
            entry = found["cohort"][tokens].get(str(size), "—")
            speedups.append(entry if isinstance(entry, str) else f"{entry['speedup']:.2f}")
        floor = found["floor"][tokens]
        cells = [name, tokens, f"{alone['tokens_per_second']:,.0f}"]
        cells += [f"{alone['over'][other]:.2f}" for other in ("plain", "trainer")]
        cells += [f"{floor['step_ms'] / floor['floor_ms']:.2f}", *speedups]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure the shapes and formats asked for, keep each, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "7B"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine shows no CUDA device; `--device cpu --shapes toy` tries it")
    options.sizes = sorted({1, *options.sizes})
    path = _RESULTS if device.type == "cuda" else _CPU_RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"measured_at": utc_now(), "shapes": {}}
    result["machine"] = collect_provenance().as_tree()
    heads = ["model", "tokens", "tokens/s", "plain /", "Trainer /", "/ floor"]
    heads += [f"K={size}" for size in options.sizes]
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for shape in options.shapes:
        for name in options.formats:
            found = measure(Clock(device), SHAPES[shape], FORMATS[name], options)
            result["shapes"].setdefault(shape, {})[name] = found
            write_text(path, json.dumps(result, indent=1) + "\n")
            print_rows(f"{shape} {name}", found, options.sizes)


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        raise SystemExit(str(error)) from None
