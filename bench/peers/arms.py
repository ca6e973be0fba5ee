"""How each arm of the comparison is started, and what it leaves behind."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.channel import Task
from bench.peers.processes import environment
from bench.peers.ratios import Agreement, agreement
from bench.peers.rows import Work, make_work
from harness.records.record import read_metrics, read_record
from harness.records.run_directory import RunDirectory

SCRIPTS = Path(__file__).parent
OURS, TRAINER, TRL = "harness", "trainer", "trl"
SAME = ("tracker=none", "eval=loss", "eval.before=false", "quant=nf4_dq")
"""Overrides of every run of ours, which leave it what the peers do: they evaluate the loss at the end."""
PEERS = (TRAINER, TRL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and with what everything is measured."""

    peers_python: Path
    threads: int
    devices: str
    """`resources.devices` of our sweeps: `auto` is one worker a thread for a small base, `cpu` is one."""
    directory: Path
    """Directory for what the arms write; gone afterwards."""
    quick: bool
    """Only to see that everything works: few steps, one repetition, numbers that mean nothing."""

    @property
    def cache(self) -> Path:
        """Our cache of packed bases and tokenized data, shared by all of our processes."""
        return self.directory / "cache"

    @property
    def our_environment(self) -> dict[str, str]:
        """What our processes get."""
        return environment(self.threads)

    @property
    def peer_environment(self) -> dict[str, str]:
        """What a peer's process gets."""
        quiet = {"TRANSFORMERS_VERBOSITY": "error"}
        return environment(self.threads, CUDA_VISIBLE_DEVICES="", **quiet)

    def work(self, overrides: Sequence[str], name: str) -> Work:
        """Return one training as both sides do it, its rows written down for the peers."""
        return make_work(overrides, self.directory / "out", self.cache, self.directory / name)

    def log(self, name: str) -> Path:
        """Return where a child's output goes."""
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{name}.log"


def our_run(setting: Setting, overrides: Sequence[str], out: Path) -> list[str]:
    """Return `harness run` with marks."""
    paths = [f"paths.out={out}", f"paths.cache={setting.cache}"]
    return [sys.executable, "-m", "bench.peers.ours", *overrides, *paths]


def peer_run(setting: Setting, peer: str, task: Task, directory: Path) -> list[str]:
    """Return a peer's process on a task, whose adapter goes into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    file = replace(task, output=str(directory / "output")).write(directory / "task.json")
    return [str(setting.peers_python), str(SCRIPTS / "peer.py"), peer, str(file)]


def compared(out: Path, run_id: str, result: dict) -> Agreement:
    """Compare a run of ours with what a peer has said."""
    directory = RunDirectory(out / "runs" / run_id)
    losses = [row["train/loss"] for row in read_metrics(directory.metrics).rows]
    assert all(loss is not None for loss in losses)
    eval_loss = read_record(directory.record).evals["after"]["eval/loss"].value
    return agreement(
        [loss for loss in losses if loss is not None],
        eval_loss,
        result["curve"],
        result["eval_loss"],
    )
