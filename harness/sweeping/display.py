"""A sweep on the terminal: a live view while it runs, plain lines without a terminal, tables at the end.

Everything is drawn from a `SweepState`, so that `harness status` shows the same. Imports no torch.
"""

import contextlib
import errno
import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.records.metrics import METRICS, Direction, format_value
from harness.records.redact import message, printable, redact
from harness.sweeping.state import UNENDED, DeviceLine, SweepState, SweepStatus, TrialLine

PLAIN_SECONDS = 10.0
LEADERS = 8


class WatchedConsole(Console):
    """A console whose reader may leave: rich would end the process, and with it what is trained."""

    def on_broken_pipe(self) -> None:
        """Say so as everything else does that prints."""
        raise BrokenPipeError(errno.EPIPE, "whoever read this has left")


class SweepDisplay:
    """Progress of one sweep on standard error."""

    def __init__(self) -> None:
        self._console = WatchedConsole(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._interactive = self._console.is_terminal
        self._said_at = 0.0
        self._said: str | None = None

    def __enter__(self) -> Self:
        if self._interactive:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._interactive:
            with contextlib.suppress(OSError):
                self._live.stop()

    def show(self, state: SweepState) -> None:
        """Draw the state, or say in a line what has changed."""
        with contextlib.suppress(OSError):  # whoever watched has gone; the sweep goes on
            self._show(state)

    def _show(self, state: SweepState) -> None:
        if self._interactive:
            self._live.update(Group(*_progress_lines(state), leaderboard(state)), refresh=True)
            return
        line = progress_text(state)
        now = time.monotonic()
        if line != self._said and now - self._said_at >= PLAIN_SECONDS:
            self._said, self._said_at = line, now
            self._console.print(line, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the live view."""
        with contextlib.suppress(OSError):
            self._console.print(message(text), soft_wrap=True, markup=False)


def progress_text(state: SweepState) -> str:
    """Say in one line how far a sweep is."""
    counts = Counter(trial.status for trial in state.trials)
    told = len(state.trials) - counts.pop("running", 0)
    words = [f"{told}/{state.trials_requested} trials"]
    words += [f"{count} {status}" for status, count in counts.items() if status != "completed"]
    confirming = [run for run in state.runs if run.role == "confirmation"]
    if confirming:
        ended = sum(run.status not in UNENDED for run in confirming)
        words.append(f"{ended}/{len(confirming)} confirmation runs")
    training = sum(run.status == "training" for run in state.runs)
    elsewhere = sum(run.status == "elsewhere" for run in state.runs)
    if state.status is SweepStatus.running:
        words.append(f"{training} training" + (f", {elsewhere} elsewhere" if elsewhere else ""))
        words.append(f"{100 * state.share_done:.0f} %")
        if state.seconds_left is not None:
            words.append(f"{_duration(state.seconds_left)} left")
    best = leaders(state)
    if best and best[0].values:
        metric = next(iter(state.objectives))
        words.append(f"best {METRICS[metric].label} {format_value(metric, best[0].values[0])}")
    return f"{state.name}: {', '.join(words)}"


def _progress_lines(state: SweepState) -> list[Text | ProgressBar]:
    lines: list[Text | ProgressBar] = [
        Text(progress_text(state)),
        ProgressBar(total=1.0, completed=state.share_done, width=60),
    ]
    return lines + [Text(f"  {device_text(device)}") for device in state.devices]


def device_text(device: DeviceLine) -> str:
    """Say what a device is doing, and how much of its time it had nothing to do."""
    text = f"{device.name}: {device.doing}"
    if device.runs:
        text += f", {len(device.runs)} runs{', ' + device.packing if device.packing else ''}"
    if device.seconds > 0:
        text += f", idle {100 * device.waited_seconds / device.seconds:.1f} % of the time"
    return text


def leaderboard(state: SweepState) -> Table:
    """Return the best trials so far, one line each; several objectives: the Pareto front is starred."""
    best = leaders(state)[:LEADERS]
    keys, shown = _shown([trial.point for trial in best], [t.point for t in state.trials])
    table = _plain_table(["trial", *keys], [_heading(metric) for metric in state.objectives])
    front = _pareto(state)
    for trial, point in zip(best, shown, strict=True):
        star = "*" if len(state.objectives) > 1 and trial.number in front else ""
        values = [
            format_value(metric, value)
            for metric, value in zip(state.objectives, trial.values or (), strict=True)
        ]
        table.add_row(f"{trial.number}{star}", *map(_as_text, point), *values)
    return table


def confirmation_table(state: SweepState) -> Table:
    """Return the confirmed cells: mean ± half of the 95 % t-interval over fresh seeds, with n."""
    points = [line.point for line in state.confirmed]
    keys, shown = _shown(points, points)
    table = _plain_table(
        ["trial", *keys], ["n", *(_heading(metric) for metric in state.objectives)]
    )
    for line, point in zip(state.confirmed, shown, strict=True):
        counts = {len(values) for values in line.values.values()}
        table.add_row(
            str(line.trial),
            *map(_as_text, point),
            f"{min(counts)}/{len(line.runs)}",
            *(interval_text(metric, line.values[metric]) for metric in state.objectives),
        )
    return table


def print_state(state: SweepState, *, file: str | None = None, answer: str | None = None) -> None:
    """Print everything about a sweep: question, progress, devices, leaders, what went wrong, confirmation."""
    console = WatchedConsole(highlight=False)

    def line(text: str) -> None:
        console.print(message(text), soft_wrap=True, markup=False)

    if state.question:
        line(state.question)
    if state.expect:
        line(f"Expected: {state.expect}")
    if answer is not None:
        line(f"Found: {answer}")
    line(progress_text(state))
    match state.status:
        case SweepStatus.running:
            line(f"running ({state.holder})")
            for device in state.devices:
                line(f"  {device_text(device)}")
        case SweepStatus.interrupted:
            line(state.complaint or f"interrupted; `harness sweep {state.name}` goes on")
        case SweepStatus.finished:
            line("finished")
    if leaders(state):
        line("\nSearch (chosen on these numbers, so they flatter):")
        console.print(leaderboard(state))
    for text in problems(state):
        line(text)
    if state.confirmed:
        line("\nConfirmation (fresh seeds, mean ± 95 % t-interval):")
        console.print(confirmation_table(state))
    if file is not None:
        line(f"record   {file}")
    sys.stdout.flush()


def problems(state: SweepState) -> list[str]:
    """Name every run that did not complete and why, and every trial that failed without one."""
    told = [
        f"{run.run_id}: {run.status}{': ' + run.error if run.error else ''}"
        for run in state.runs
        if run.status in ("failed", "diverged", "out_of_memory")
    ]
    named = {run.run_id for run in state.runs}
    return told + [
        f"trial {trial.number}: {trial.status}: {trial.reason}"
        for trial in state.trials
        if trial.reason and not named & set(trial.runs)
    ]


def leaders(state: SweepState) -> list[TrialLine]:
    """Return the told, feasible trials with finite values, best first, each cell once."""
    signs = [1 if way == Direction.minimize.value else -1 for way in state.objectives.values()]
    found: dict[str, TrialLine] = {}
    for trial in state.trials:
        told = trial.status == "completed" and trial.feasible
        if told and trial.values and all(map(math.isfinite, trial.values)):
            found.setdefault(str(trial.point), trial)
    front = _pareto(state) if len(signs) > 1 else frozenset()
    return sorted(
        found.values(),
        key=lambda trial: (
            trial.number not in front,
            [sign * value for sign, value in zip(signs, trial.values or (), strict=True)],
        ),
    )


def _pareto(state: SweepState) -> frozenset[int]:
    """Return the numbers of the trials that no other trial beats in every objective."""
    signs = [1 if way == Direction.minimize.value else -1 for way in state.objectives.values()]
    points = {
        trial.number: [s * v for s, v in zip(signs, trial.values, strict=True)]
        for trial in state.trials
        if trial.status == "completed" and trial.feasible and trial.values
    }
    return frozenset(
        number
        for number, mine in points.items()
        if not any(_dominates(other, mine) for other in points.values())
    )


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _shown(
    points: Sequence[Mapping[str, str]], all_points: Sequence[Mapping[str, str]]
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of points, without what all of a column begin with.

    `lora.rank` is rank unless another axis ends so, and a model's path is as long as it differs from others.
    """
    keys = list(dict.fromkeys(key for point in all_points for key in point))
    headings = _told_apart(keys, ".")
    columns: list[list[str]] = []
    for key in keys:
        values = {point[key]: None for point in all_points if key in point}
        short = dict(zip(values, _told_apart([v.strip("'") for v in values], "/"), strict=True))
        columns.append([short.get(point.get(key, ""), "—") for point in points])
    rows = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in points]
    return headings, rows


def _as_text(value: str) -> Text:
    """Return a cell in which brackets are no markup, and a terminal is told nothing."""
    return Text(printable(redact(value)))


def _told_apart(names: Sequence[str], separator: str) -> list[str]:
    """Return the fewest last parts of each name that no other name ends in."""

    def ending(name: str, count: int) -> str:
        return separator.join(name.split(separator)[-count:])

    found = []
    for name in names:
        count = 1
        while ending(name, count) != name and any(
            ending(other, count) == ending(name, count) for other in names if other != name
        ):
            count += 1
        found.append(ending(name, count) or name)
    return found


def _broken(heading: str) -> str:
    """Break a heading between its words into lines, so that numbers below it make the column's width."""
    lines = [""]
    for word in re.findall(r"[^_. ]+[_. ]*", heading):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > _HEADING:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


_FEW_COLUMNS = 6
_HEADING = 9
"""Characters that a line of a heading should have at most: those of a learning rate in full."""


def interval_text(metric: str, values: Sequence[float]) -> str:
    """Print mean ± half-width of the 95 % t-interval (n - 1 degrees of freedom)."""
    if not values:
        return "—"
    mean = format_value(metric, statistics.fmean(values))
    if len(values) == 1:
        return mean
    from scipy.stats import t  # half a second that only a confirmed sweep spends

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {format_value(metric, half)}"


def _heading(metric: str) -> str:
    return f"{METRICS[metric].label}{METRICS[metric].direction.arrow}"


def _plain_table(left: Sequence[str], right: Sequence[str]) -> Table:
    broken = _broken if len(left) + len(right) > _FEW_COLUMNS else str
    gap = min(2, max(0, _FEW_COLUMNS + 2 - len(left) - len(right)))  # beside the box's own space
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0))
    for heading in left:
        table.add_column(_as_text(_broken(heading)), justify="left", overflow="fold")
    for heading in right:
        table.add_column(broken(heading), justify="right", no_wrap=True)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
