"""What a person sees while a run trains and when it has ended. Imports no torch.

A terminal gets a progress bar; a pipe or a log file gets plain lines, at most one every few seconds.
Progress goes to standard error, the result to standard output.
"""

import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from harness.metrics import METRICS, Direction, format_value
from harness.record import Estimate, Record, RunStatus
from harness.run_directory import RunDirectory

if TYPE_CHECKING:
    from harness.training.session import Event

_PLAIN_SECONDS = 5.0
_COST = (
    "adapter/trainable_params",
    "base/bits_per_param",
    "memory/peak_bytes",
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
)


class RunDisplay:
    """Progress of one run on standard error."""

    def __init__(self, run_id: str) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._interactive = self._console.is_terminal
        self._said_at = 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(run_id, total=None, loss="—", speed="—")
        self._run_id = run_id

    def __enter__(self) -> Self:
        if self._interactive:
            self._bar.start()
        else:
            self._console.print(f"{self._run_id}: loading", soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: "Event") -> None:
        """Show what the session has just reported."""
        from harness.training.session import StepDone

        if not isinstance(event, StepDone):
            return
        slot = event.entry.slot
        done, total = slot.progress.step, slot.total_steps
        speed = slot.clock.recent_tokens_per_second()
        loss = format_value("train/loss", event.values["train/loss"])
        tokens = format_value("throughput/input_tokens_per_second", speed)
        if self._interactive:
            self._bar.update(self._task, completed=done, total=total, loss=loss, speed=tokens)
            return
        now = time.monotonic()
        if now - self._said_at >= _PLAIN_SECONDS or done == total:
            self._said_at = now
            left = (total - done) * sum(slot.clock.seconds[-20:]) / len(slot.clock.seconds[-20:])
            self._console.print(
                f"step {done}/{total}  loss {loss}  {tokens} tokens/s  {left:.0f} s left",
                soft_wrap=True,
            )


def print_result(record: Record, directory: RunDirectory, *, as_json: bool) -> None:
    """Print the record's file, or a table of before, after and cost with where the adapter is."""
    if as_json:
        print(directory.record.read_text(encoding="utf-8"), end="")
        return
    console = Console(highlight=False)
    console.print(_quality_table(record))
    console.print(_cost_table(record))
    if record.status is RunStatus.completed:
        console.print(f"adapter  {directory.adapter}", soft_wrap=True)
    console.print(f"record   {directory.record}", soft_wrap=True)
    for note in record.notes:
        console.print(f"note     {note}", soft_wrap=True, markup=False)
    if record.error is not None:
        sys.stdout.flush()
        print(f"harness: {record.status.value}: {record.error}", file=sys.stderr)


def _quality_table(record: Record) -> Table:
    before, after = record.evals.get("before", {}), record.evals.get("after", {})
    table = Table(title=f"{record.run_id}: {record.status.value}", title_justify="left")
    for heading in ("metric", "before", "after", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name in [name for name in METRICS if name in before or name in after]:
        result = after.get(name) or before[name]
        label = f"{METRICS[name].label} {_ARROWS[METRICS[name].direction]}"
        table.add_row(
            label,
            _estimate(name, before.get(name)),
            _estimate(name, after.get(name)),
            f"{result.n}",
        )
    return table


_ARROWS = {Direction.minimize: "↓", Direction.maximize: "↑", Direction.neither: ""}


def _estimate(name: str, result: Estimate | None) -> str:
    if result is None:
        return "—"
    if result.standard_error is None:
        return format_value(name, result.value)
    return f"{format_value(name, result.value)} ± {format_value(name, result.standard_error)}"


def _cost_table(record: Record) -> Table:
    table = Table(show_header=True)
    for name in _COST:
        table.add_column(METRICS[name].label, justify="right")
    table.add_column("wall-clock", justify="right")
    seconds = "—" if record.wall_seconds is None else f"{record.wall_seconds:.1f} s"
    table.add_row(*(format_value(name, record.metrics.get(name)) for name in _COST), seconds)
    return table
