"""What a person sees while a run trains and when it has ended. Imports no torch.

A terminal gets a progress bar; a pipe or a log file gets plain lines, at most one every few seconds.
Progress goes to standard error, the result to standard output.
"""

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Self

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from harness.config.schema import LoraMethod
from harness.records.metrics import METRICS, format_value
from harness.records.record import Estimate, Record, RunStatus
from harness.records.redact import message
from harness.records.run_directory import RunDirectory
from harness.sweeping.display import WatchedConsole

if TYPE_CHECKING:
    from harness.training.session import Event

_PLAIN_SECONDS = 5.0
_COST = (
    "adapter/trainable_params",
    "base/bits_per_param",
    "base/packed_share",
    "adapter/adapted_share",
    "memory/peak_bytes",
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
)


class RunDisplay:
    """Progress of one run on standard error."""

    def __init__(self, run_id: str) -> None:
        self._console = WatchedConsole(stderr=True, highlight=False)
        self._interactive = self._console.is_terminal
        self._said_at = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("loading", total=None, loss="—", speed="—")
        self._run_id = run_id
        self._losses: list[float] = []
        """Losses of the steps since the last evaluation."""

    def __enter__(self) -> Self:
        if self._interactive:  # the id stands above the bar, which needs the width
            self._console.print(self._run_id, soft_wrap=True)
            self._bar.start()
        else:
            self._console.print(f"{self._run_id}: loading", soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._interactive:  # elsewhere it would leave an empty line
            with contextlib.suppress(OSError):
                self._bar.stop()

    def show(self, event: "Event") -> None:
        """Show what the session has just reported."""
        with contextlib.suppress(OSError):  # whoever watched has gone; the run goes on
            self._show(event)

    def _show(self, event: "Event") -> None:
        from harness.training.session import RunStarted, StepDone

        if isinstance(event, RunStarted):
            shares, quant = event.entry.coverage, event.entry.job.config.quant
            self._console.print(
                f"of the blocks' weights {shares.packed:.1%} are stored as {quant.format.value}, "
                f"{shares.adapted:.1%} adapted",
                soft_wrap=True,
                markup=False,
            )
            for note in event.entry.job.notes:
                self._console.print(f"note  {note}", soft_wrap=True, markup=False)
        if not isinstance(event, StepDone):
            return
        slot = event.entry.slot
        done, total = slot.progress.step, slot.total_steps
        speed = slot.clock.recent_tokens_per_second()
        loss = format_value("train/loss", event.values["train/loss"])
        self._losses.append(event.values["train/loss"])
        if "eval/loss" in event.values:
            self._say_evaluation(event.values, done, total)
        tokens = format_value("throughput/input_tokens_per_second", speed)
        if self._interactive:
            self._bar.update(
                self._task,
                description="training",
                completed=done,
                total=total,
                loss=loss,
                speed=tokens,
            )
            return
        now = time.monotonic()
        if now - self._said_at >= _PLAIN_SECONDS or done == total:
            self._said_at = now
            left = (total - done) * sum(slot.clock.seconds[-20:]) / len(slot.clock.seconds[-20:])
            self._console.print(
                f"step {done}/{total}  loss {loss}  {tokens} tokens/s  {left:.0f} s left",
                soft_wrap=True,
            )

    def _say_evaluation(self, values: dict[str, float], done: int, total: int) -> None:
        """Print a line that stays: both losses, that of training as the mean since the last such line."""
        mean, self._losses = sum(self._losses) / len(self._losses), []
        self._console.print(
            f"epoch {values['train/epoch']:.2f}  step {done}/{total}  "
            f"train loss {format_value('train/loss', mean)}  "
            f"eval loss {format_value('eval/loss', values['eval/loss'])}",
            soft_wrap=True,
        )


def print_result(record: Record, directory: RunDirectory, *, as_json: bool) -> None:
    """Print the record's file, or a table of before, after and cost with where the adapter is."""
    if as_json:
        print(directory.record.read_text(encoding="utf-8"), end="")
    else:
        _print_tables(record, directory)
    if record.error is not None:
        sys.stdout.flush()
        resumes = record.status in (
            RunStatus.interrupted,
            RunStatus.failed,
            RunStatus.out_of_memory,
        )
        hint = "; the same command goes on from the last checkpoint" if resumes else ""
        said = message(f"harness: {record.status.value}: {record.error}{hint}")
        print(said, file=sys.stderr)


def _print_tables(record: Record, directory: RunDirectory) -> None:
    console = WatchedConsole(highlight=False)

    def line(text: str) -> None:
        console.print(message(text), soft_wrap=True, markup=False)

    line(f"{record.run_id}: {record.status.value}")
    if record.evals:
        console.print(_quality_table(record))
    if record.metrics:
        console.print(_cost_table(record))
    if record.status is RunStatus.completed:
        trains_all = record.config.get("lora", {}).get("method") == LoraMethod.none.value
        line(f"model    {directory.model}" if trains_all else f"adapter  {directory.adapter}")
    line(f"record   {directory.record}")
    for note in record.notes:
        line(f"note     {note}")


def _quality_table(record: Record) -> Table:
    before, after = record.evals.get("before", {}), record.evals.get("after", {})
    table = plain_table("metric", "before", "after", "n")
    for name in METRICS.in_order([*before, *after]):
        result = after.get(name) or before[name]
        table.add_row(
            f"{METRICS[name].label}{METRICS[name].direction.arrow}",
            estimate_text(name, before.get(name)),
            estimate_text(name, after.get(name)),
            f"{result.n:,}",
        )
    return table


def estimate_text(name: str, result: Estimate | None) -> str:
    """Return a result with its standard error, in the metric's digits; a missing one as —."""
    if result is None:
        return "—"
    if result.standard_error is None:
        return format_value(name, result.value)
    return f"{format_value(name, result.value)} ± {format_value(name, result.standard_error)}"


def _cost_table(record: Record) -> Table:
    table = plain_table("cost", "")
    for name in _COST:
        table.add_row(METRICS[name].label, _with_unit(name, record.metrics.get(name)))
    table.add_row(
        "wall-clock", "—" if record.wall_seconds is None else f"{record.wall_seconds:.1f} s"
    )
    return table


def _with_unit(name: str, value: float | None) -> str:
    """Print a value with its unit where neither its label nor its digits say it."""
    text = format_value(name, value)
    return f"{text} ms" if METRICS[name].unit == "ms" and value is not None else text


def plain_table(*headings: str) -> Table:
    """Return an empty table without frame, the first column to the left and numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table
