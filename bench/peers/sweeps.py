"""A sweep of ours against a loop of processes over the same cells, and against Hydra's basic multirun.

The processes of a loop are alike, so a few of them are run, next to each sweep, and the loop is their mean
times its length; the record says how many were run. Their losses must be those of the sweep's runs.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.peers.arms import PEERS, SAME, SCRIPTS, TRAINER, TRL, Setting, compared, peer_run
from bench.peers.processes import Finished, run
from bench.peers.ratios import Agreement, ratio_of
from bench.peers.rows import Work
from bench.sweep import RANKS, RATES, write_question
from harness.sweeping.state import SweepDirectory, SweepState, read_state

STEPS, QUICK_STEPS = 120, 12
"""Steps of a run by default, and enough for a peer to log a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Processes of one peer, as many as were run."""

    finished: list[Finished]
    agreements: list[Agreement]

    def seconds(self, length: int) -> float:
        """Return what so many of them take, one after the other."""
        return length * statistics.fmean(each.seconds for each in self.finished)


@dataclass(slots=True)
class Measured:
    """What the repetitions of one comparison have given."""

    sweeps: list[Finished] = field(default_factory=list)
    states: list[SweepState] = field(default_factory=list)
    loops: dict[str, list[Loop]] = field(default_factory=lambda: {peer: [] for peer in PEERS})

    def tree(self, length: int) -> dict[str, Any]:
        """Return ratios and what they were made of; a loop has `length` processes."""
        sweeps = [each.seconds for each in self.sweeps]
        return {
            "sweep_seconds": sweeps,
            "sweep_peak_bytes": [each.peak_bytes for each in self.sweeps],
            "packing": [state.devices[0].packing for state in self.states],
            "loops": {
                peer: {
                    "length": length,
                    "processes_run": sum(len(loop.finished) for loop in loops),
                    "process_seconds": [[f.seconds for f in loop.finished] for loop in loops],
                    "process_peak_bytes": [[f.peak_bytes for f in loop.finished] for loop in loops],
                    "seconds": [loop.seconds(length) for loop in loops],
                    "agreement": [asdict(a) for loop in loops for a in loop.agreements],
                    "over_sweep": asdict(
                        ratio_of([loop.seconds(length) for loop in loops], sweeps)
                    ),
                }
                for peer, loops in self.loops.items()
                if loops
            },
        }


def our_sweep(setting: Setting, file: Path, name: str) -> tuple[Finished, SweepState, Path]:
    """Run a sweep from nothing but the caches; returns what it cost, how it ended, and where it lies."""
    out = setting.directory / name
    command = [sys.executable, "-m", "harness", "sweep", str(file)]
    command += [f"paths.out={out}", f"paths.cache={setting.cache}"]
    command.append(f"resources.devices={setting.devices}")
    finished = run(command, setting.our_environment, setting.log(name))
    return finished, read_state(SweepDirectory(out, file.stem)), out


def run_of(state: SweepState, point: Mapping[str, str]) -> str:
    """Return the run of the trial at a point."""
    for trial in state.trials:
        if trial.point == point:
            assert trial.status == "completed", trial
            return trial.runs[0]
    raise AssertionError(f"no trial at {point}: {[trial.point for trial in state.trials]}")


def run_loop(
    setting: Setting, peer: str, cells: Sequence[tuple[int, float]], work: Work, name: str
) -> list[Finished]:
    """Run one process of a peer for each cell: a rank and a learning rate."""
    finished = []
    for rank, rate in cells:
        task = replace(
            work.task, rank=rank, alpha=work.task.alpha / work.task.rank * rank, learning_rate=rate
        )
        directory = setting.directory / f"{name}_{peer}_{rank}_{rate}"
        command = peer_run(setting, peer, task, directory)
        finished.append(run(command, setting.peer_environment, setting.log(directory.name)))
    return finished


def grid_point(rank: int, rate: float) -> dict[str, str]:
    """Return the point of a cell, as the sweep writes it."""
    return {"lora.rank": str(rank), "optim.lr": repr(rate)}


def sixteen(setting: Setting) -> dict[str, Any]:
    """16 runs of the default length (4 ranks x 4 learning rates) on the embedded base."""
    steps = QUICK_STEPS if setting.quick else STEPS
    repetitions = 1 if setting.quick else 2
    base = (f"optim.steps={steps}",)
    work = setting.work([*SAME, *base], "sixteen_work")
    file = write_question(setting.directory, "sixteen", [*SAME, *base])
    warm_caches(setting)
    measured = Measured()
    for repetition in range(repetitions):
        cells = diagonal(repetition)[: 1 if setting.quick else None]
        trl = run_loop(setting, TRL, cells[::2], work, f"sixteen{repetition}a")
        finished, state, out = our_sweep(setting, file, f"sixteen{repetition}")
        trl = [*trl, *run_loop(setting, TRL, cells[1::2], work, f"sixteen{repetition}b")]
        plain = run_loop(setting, TRAINER, cells[::3], work, f"sixteen{repetition}")
        measured.sweeps.append(finished)
        measured.states.append(state)
        for peer, ran, theirs in (
            (TRL, trl, [*cells[::2], *cells[1::2]]),
            (TRAINER, plain, cells[::3]),
        ):
            agreements = [
                compared(out, run_of(state, grid_point(*cell)), each.result)
                for cell, each in zip(theirs, ran, strict=True)
            ]
            measured.loops[peer].append(Loop(finished=ran, agreements=agreements))
    return {"steps": steps, **measured.tree(len(RANKS) * len(RATES))} | {
        "multirun": multirun(setting, work, measured)
    }


def diagonal(turn: int) -> list[tuple[int, float]]:
    """Return a cell of each rank, the lower two learning rates in alternation, swapped every turn.

    At the higher ones the last bits of a rounding grow into other curves, so that nothing could be compared.
    """
    return [(rank, RATES[(index + turn) % 2]) for index, rank in enumerate(RANKS)]


def multirun(setting: Setting, work: Work, measured: Measured) -> dict[str, Any]:
    """TRL under Hydra's basic multirun: a few jobs in one process, the rest by their mean."""
    directory = setting.directory / "multirun"
    directory.mkdir(parents=True, exist_ok=True)
    file = replace(work.task, output=str(directory / "output")).write(directory / "task.json")
    ranks = RANKS[:1] if setting.quick else RANKS[1:]
    command = [str(setting.peers_python), str(SCRIPTS / "trl_multirun.py"), "-m"]
    command += [f"+task={file}", f"+rank={','.join(map(str, ranks))}", f"+lr={RATES[1]}"]
    command += [f"hydra.sweep.dir={directory / 'hydra'}"]
    finished = run(command, setting.peer_environment, setting.log("multirun"))
    once = finished.seconds - sum(finished.jobs)
    length = len(RANKS) * len(RATES)
    seconds = once + length * statistics.fmean(finished.jobs)
    return {
        "jobs_run": len(finished.jobs),
        "job_seconds": finished.jobs,
        "seconds_once": once,
        "seconds": seconds,
        "over_sweep": seconds / statistics.median(each.seconds for each in measured.sweeps),
    }


def warm_caches(setting: Setting) -> None:
    """Pack the base and tokenize the data once, as on a machine where the harness has been used."""
    command = [sys.executable, "-m", "harness", "run", *SAME, "optim.steps=1"]
    command += [f"paths.out={setting.directory / 'warm'}", f"paths.cache={setting.cache}"]
    run(command, setting.our_environment, setting.log("warm"))
