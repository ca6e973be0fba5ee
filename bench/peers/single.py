"""One run: ours, transformers.Trainer and TRL side by side, in turns of a few steps.

Each repetition starts the three processes one after the other and lets each make its first block of steps
alone. From then on they take turns, a block each, while the other two wait: a slow stretch of the machine
falls on all.
"""

import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers.arms import OURS, PEERS, SAME, Setting, compared, our_run, peer_run
from bench.peers.processes import Child, Finished, run
from bench.peers.ratios import Agreement, ratio_of
from bench.peers.rows import Work

ARMS = (OURS, *PEERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and how much of it."""

    name: str
    """Name of the model, for the table."""
    overrides: tuple[str, ...]
    block_steps: int
    blocks: int
    """Blocks of each arm and repetition, after the first, which warms up."""
    repetitions: int

    @property
    def steps(self) -> int:
        """All blocks, and one step more: the last one is followed by the evaluation."""
        return self.block_steps * (1 + self.blocks) + 1

    def shortened(self) -> "Plan":
        """Return the least that exercises everything."""
        return replace(self, block_steps=2, blocks=4, repetitions=1)


EMBEDDED = Plan(name="embedded", overrides=(), block_steps=20, blocks=5, repetitions=3)
"""`harness run`'s defaults but for the number of steps (121 for 120)."""


def model_plan(model: str, train: str, validation: str) -> Plan:
    """Return the plan for a model and data of the user's own, in the form of Alpaca."""
    overrides = (
        *(f"model='{model}'", "data=alpaca", f"data.path='{train}'"),
        *(f"data.validation_path='{validation}'", "data.max_length=256"),
    )
    name = Path(model).name
    return Plan(name=name, overrides=overrides, block_steps=6, blocks=5, repetitions=2)


def measure(setting: Setting, plan: Plan) -> dict[str, Any]:
    """Run all repetitions; returns ratios, medians and what they were made of."""
    if setting.quick:
        plan = plan.shortened()
    overrides = [*SAME, *plan.overrides, f"optim.steps={plan.steps}"]
    work = setting.work(overrides, "work")
    cold = run(
        our_run(setting, (*overrides, "optim.steps=1"), setting.directory / "cold"),
        setting.our_environment,
        setting.log("cold"),
    )
    blocks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    finished: dict[str, list[Finished]] = {arm: [] for arm in ARMS}
    agreements: dict[str, list[Agreement]] = {peer: [] for peer in PEERS}
    for repetition in range(plan.repetitions):
        ended = _repetition(setting, plan, work, repetition, blocks)
        for arm in ARMS:
            finished[arm].append(ended[arm])
        out = setting.directory / f"ours{repetition}"
        for peer in PEERS:
            run_id = ended[OURS].result["run_id"]
            agreements[peer].append(compared(out, run_id, ended[peer].result))
    return {
        "model": plan.name,
        "overrides": overrides,
        "tokens_per_step": work.tokens_per_step,
        "block_steps": plan.block_steps,
        "first_step_seconds_without_cache": cold.marks["first_step"],
        "arms": {
            arm: _arm(plan, work, blocks[arm], finished[arm], agreements.get(arm)) for arm in ARMS
        },
        "over_peers": {peer: _ratios(blocks, finished, peer) for peer in PEERS},
    }


def _repetition(
    setting: Setting, plan: Plan, work: Work, repetition: int, blocks: dict[str, list[float]]
) -> dict[str, Finished]:
    """Start all arms, let them take turns, and let each end alone."""
    order = _rotated(repetition)
    children: dict[str, Child] = {}
    with ExitStack() as stack:
        for arm in order:
            child = stack.enter_context(_start(setting, plan, work, arm, repetition))
            children[arm] = child
            if child.until("block") is None:
                child.finish()  # raises with its last words
        for block in range(plan.blocks):
            for arm in _rotated(repetition + block):
                children[arm].go()
                said = children[arm].until("block")
                if said is None:
                    children[arm].finish()
                assert said is not None
                blocks[arm].append(said["seconds"])
        ended = {}
        for arm in order:
            children[arm].go()
            ended[arm] = children[arm].finish()
    return ended


def _rotated(turns: int) -> tuple[str, ...]:
    first = turns % len(ARMS)
    return ARMS[first:] + ARMS[:first]


def _start(setting: Setting, plan: Plan, work: Work, arm: str, repetition: int) -> Child:
    log = setting.log(f"{arm}{repetition}")
    if arm == OURS:
        out = setting.directory / f"ours{repetition}"
        command = our_run(setting, work.overrides, out)
        return Child(command, setting.our_environment, log, block_steps=plan.block_steps)
    command = peer_run(setting, arm, work.task, setting.directory / f"{arm}{repetition}")
    return Child(command, setting.peer_environment, log, block_steps=plan.block_steps)


def _arm(
    plan: Plan,
    work: Work,
    blocks: list[float],
    finished: list[Finished],
    agreements: list[Agreement] | None,
) -> dict[str, Any]:
    """Return one arm's medians, and each measurement."""
    phases = finished[0].marks.keys() - {"block"}
    return {
        "tokens_per_second": work.tokens_per_step * plan.block_steps / statistics.median(blocks),
        "step_ms": 1e3 * statistics.median(blocks) / plan.block_steps,
        "first_step_seconds": statistics.median(each.marks["first_step"] for each in finished),
        "peak_bytes": statistics.median(each.peak_bytes for each in finished),
        "seconds_to_mark": {
            mark: statistics.median(each.marks[mark] for each in finished)
            for mark in sorted(phases, key=lambda mark: finished[0].marks[mark])
            if mark in ("imported", "loaded", "first_step")  # the later ones contain waiting
        },
        "blocks_seconds": blocks,
        "first_steps_seconds": [each.marks["first_step"] for each in finished],
        "peaks_bytes": [each.peak_bytes for each in finished],
    } | ({} if agreements is None else {"agreement": [asdict(each) for each in agreements]})


def _ratios(
    blocks: dict[str, list[float]], finished: dict[str, list[Finished]], peer: str
) -> dict[str, Any]:
    """Return ours against one peer's, pair by pair; each is better the larger, but memory."""
    ours, theirs = finished[OURS], finished[peer]
    first = [each.marks["first_step"] for each in ours]
    return {
        "tokens_per_second": asdict(ratio_of(blocks[peer], blocks[OURS])),
        "first_step": asdict(ratio_of([e.marks["first_step"] for e in theirs], first)),
        "peak_bytes": asdict(
            ratio_of([e.peak_bytes for e in ours], [e.peak_bytes for e in theirs])
        ),
    }
