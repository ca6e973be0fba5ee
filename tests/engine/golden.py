"""`python -m tests.engine.golden [--write]`: the numbers of short runs, before and now, to the last bit.

Runs of a few steps on the embedded base: one in each storage, one in bfloat16, two processes with a base
each and with half a base each, a run that was stopped and went on, and a cohort of eight. Losses, norms of
gradients, evaluations and the bytes of the adapter are compared with those in golden.json. `--write` replaces
the file: only where a change is meant to change numbers, in the same commit.

The bits are those of one kind of processor and one release of torch; elsewhere the numbers are compared
within `tolerance`.
"""

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file

from harness.base.build import build_base
from harness.base.source import find_model, model_fingerprint
from harness.config.identity import Identity
from harness.config.schema import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    LoraInit,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
    TrackerConfig,
    TrackerName,
)
from harness.data.prepare import prepare_data
from harness.engine.shared_base import SharedBase
from harness.records.metrics_log import read_metrics
from harness.records.record import read_record
from harness.records.run_directory import RunDirectory
from harness.request import Request
from harness.training.job import Job
from harness.training.session import Queue, RunEnded, train
from harness.training.stop import StopRequest
from tests.commands.forked import Command
from tests.training.side_by_side import SideBySide

GOLDEN = Path(__file__).with_name("golden.json")
ELSEWHERE, ELSEWHERE_BFLOAT16 = 5e-3, 3e-2
"""Largest difference, relative, on another processor: kernels that sum in another order, after six steps; in
bfloat16, where a sum is rounded to 8 bits, on processors that multiply tiles of it at once."""

Numbers = dict[str, Any]

FORMATS = (
    *("none", "nf4", "nf4_dq", "fp4", "fp4_dq", "int4", "int4_dq", "int4_asym", "int4_asym_dq"),
    "int8",
)


def runs() -> dict[str, Callable[[Path], Numbers]]:
    """Return what is run, by name; each is given an empty directory."""
    alone: dict[str, Callable[[Path], Numbers]] = {
        name: partial(_command, [f"quant={name}"]) for name in FORMATS
    }
    halves = ["resources.data_parallel=2", "resources.device=cpu"]
    return alone | {
        "nf4_dq bfloat16": partial(_command, ["quant=nf4_dq", "quant.compute_dtype=bfloat16"]),
        "nf4 blocks across rows": partial(_command, ["quant=nf4", "quant.block_size=4096"]),
        "nf4_dq recomputed": partial(
            _command, ["quant=nf4_dq", "optim.gradient_checkpointing=true"]
        ),
        "nf4_dq data-parallel": partial(_command, ["quant=nf4_dq", *halves]),
        "nf4_dq sharded": partial(_command, ["quant=nf4_dq", *halves, "resources.shard=fsdp"]),
        "int4 sharded": partial(_command, ["quant=int4", *halves, "resources.shard=fsdp"]),
        "nf4_dq resumed": _resumed,
        "nf4_dq cohort of eight": partial(_cohort, QuantConfig(double_quant=True)),
        "int4 cohort of eight": partial(_cohort, QuantConfig(format=QuantFormat.int4)),
    }


def machine() -> dict[str, str]:
    """Return what the bits depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    wanted = ("vendor_id", "cpu family", "model")
    words = [line.partition(":") for line in lines]
    return {
        "processor": " ".join(value.strip() for key, _, value in words if key.strip() in wanted)[
            :64
        ]
        or platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


# One run ------------------------------------------------------------------------------------------


def _request(overrides: list[str], steps: int = 6) -> list[str]:
    return [
        *("run", "data=rule", "data.validation_rows=32", "eval=loss", "tracker=none"),
        *(f"optim.steps={steps}", "optim.batch_size=4", "resources.threads=1", *overrides),
    ]


def _command(overrides: list[str], directory: Path) -> Numbers:
    done = Command(_request(overrides), directory, forks_ranks=True).end()
    assert done.code == 0, done.err
    return _of_run(_only_run(directory))


def _resumed(directory: Path) -> Numbers:
    request = _request(["quant=nf4_dq", "checkpoint.every_steps=1"], steps=40)
    command = Command(request, directory)
    command.wait_until(lambda: _steps(directory) >= 5)
    command.send(signal.SIGTERM)
    assert (done := command.end()).code == 130, done.err
    assert (done := Command(request, directory).end()).code == 0, done.err
    assert any(
        note.startswith("resumed after step")
        for note in read_record(_only_run(directory) / "run.json").notes
    )
    return _of_run(_only_run(directory))


def _only_run(directory: Path) -> Path:
    (only,) = (directory / "out" / "runs").iterdir()
    return only


def _steps(directory: Path) -> int:
    files = list((directory / "out" / "runs").glob("*/metrics.jsonl"))
    return len(read_metrics(files[0]).rows) if files else 0


def _of_run(run: Path) -> Numbers:
    rows, evals = read_metrics(run / "metrics.jsonl").rows, read_record(run / "run.json").evals
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].contiguous().numpy().tobytes())
    return {
        "losses": [row["train/loss"] for row in rows],
        "gradient norms": [row["train/grad_norm"] for row in rows],
        "evaluations": {
            when: results["eval/loss"].value for when, results in sorted(evals.items())
        },
        "adapter norm": torch.cat([t.flatten() for t in tensors.values()]).double().norm().item(),
        "adapter": digest.hexdigest()[:16],
    }


# A cohort -----------------------------------------------------------------------------------------


def _cohort(quant: QuantConfig, directory: Path) -> Numbers:
    """Train eight runs in one pass: other ranks, targets, rates, lengths; no dropout."""
    config = ModelConfig()
    source = find_model(config)
    base = build_base(
        source,
        config,
        quant,
        fingerprint=model_fingerprint(source, directory / "memo.json"),
        device=torch.device("cpu"),
        cache=directory / "cache",
    )
    shared = SharedBase(base)
    jobs = list(_eight(shared, quant, directory))
    events = list(train(shared, Queue(jobs), sizer=SideBySide(8), stop=StopRequest()))
    assert sum(isinstance(event, RunEnded) for event in events) == 8
    return {job.run_id: _of_run(job.directory.path) for job in jobs}


def _eight(shared: SharedBase, quant: QuantConfig, directory: Path) -> Iterator[Job]:
    targets = [["all_linear"], ["q_proj", "v_proj"], ["mlp"], ["attention"]]
    data = DataConfig(task="rule", train_rows=200, validation_rows=16, test_rows=8, max_length=64)
    prepared = prepare_data(data, shared.base.tokenizer, shared.base.fingerprint, directory / "d")
    for i in range(8):
        config = RunConfig(
            quant=quant,
            lora=LoraConfig(
                rank=[2, 4, 8, 16, 32, 3, 24, 32][i],
                alpha=float(1 + 3 * i),
                rslora=i % 3 == 1,
                target_modules=targets[i % 4],
                init=LoraInit.gaussian if i == 5 else LoraInit.default,
            ),
            data=data,
            optim=OptimConfig(
                lr=[5e-3, 1e-3, 2e-2, 3e-3][i % 4],
                batch_size=4,
                micro_batch_size=[4, 2, 1][i % 3],
                steps=4 + i % 3,
                loraplus_ratio=[1.0, 4.0][i % 2],
            ),
            eval=EvalConfig(generate=False),
            tracker=TrackerConfig(name=TrackerName.none),
            seed=i,
        )
        run = RunDirectory(directory / "runs" / f"run {i}")
        run.path.mkdir(parents=True)
        identity = Identity(run_id=f"run {i}", cell_id=f"run {i}")
        request = Request(config, shared.base.source, shared.base.fingerprint, identity, run)
        yield Job(request=request, data=prepared, provenance={})


# Before and now -----------------------------------------------------------------------------------


def differences(before: Numbers, now: Numbers, within: float) -> list[str]:
    """Return a line for each number that is not as it was, within a relative difference; 0: to the bit."""
    one, other = dict(_flat(before)), dict(_flat(now))
    lines = [f"{key}: only on one side" for key in one.keys() ^ other.keys()]
    for key in one.keys() & other.keys():
        was, is_ = one[key], other[key]
        if within == 0 or not isinstance(was, float):
            same = was == is_ or (within > 0 and key.endswith("adapter"))
        else:
            same = abs(was - is_) <= within * abs(was)
        if not same:
            lines.append(f"{key}: {was!r} before, {is_!r} now")
    return sorted(lines)


def tolerance(name: str, there: dict[str, str]) -> float:
    """Return how far the numbers of a run may be from those of `there`, another processor or torch."""
    if there == machine():
        return 0.0
    return ELSEWHERE_BFLOAT16 if "bfloat16" in name else ELSEWHERE


def _flat(numbers: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    match numbers:
        case dict():
            for key, value in numbers.items():
                yield from _flat(value, f"{path}/{key}" if path else key)
        case list():
            for index, value in enumerate(numbers):
                yield from _flat(value, f"{path}/{index + 1}")
        case _:
            yield path, numbers


def main() -> None:
    """Run everything, print before and now, and say whether they are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep what came out as golden.json")
    parser.add_argument("names", nargs="*", help="of runs; none: all")
    options = parser.parse_args()
    chosen = {
        name: run for name, run in runs().items() if name in options.names or not options.names
    }
    golden = (
        json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"machine": machine(), "runs": {}}
    )
    found: dict[str, Numbers] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, run in chosen.items():
            found[name] = run(Path(work, name.replace(" ", "_")))
            within = tolerance(name, golden["machine"])
            _show(name, golden["runs"].get(name), found[name], within)
    if options.write:
        kept = {"machine": machine(), "runs": golden["runs"] | found}
        GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")


def _show(name: str, before: Numbers | None, now: Numbers, within: float) -> None:
    if before is None:
        verdict = "new"
    else:
        different = differences(before, now, within)
        same = f"within {within} (another processor or torch)" if within else "the same bits"
        verdict = f"{len(different)} numbers differ" if different else same
    for when, numbers in (("before", before), ("now", now)):
        one = numbers and numbers.get("run 0", numbers)
        if one:
            print(
                f"{name:24} {when:6} last loss {one['losses'][-1]:.17f}  "
                f"gradient {one['gradient norms'][-1]:.9f}  adapter {one['adapter']}"
            )
    print(f"{name:24} {verdict}", flush=True)


if __name__ == "__main__":
    main()
