"""The harness from Python: a run, a sweep, and what runs have left behind as a data frame.

`import harness` offers these names without loading this module, torch or pandas before they are used. What is
wrong with a request raises RequestError, as on the command line, before a model is loaded.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.run import run as train_run
from harness.commands.sweep import answer, checked, named_question
from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed
from harness.question.load import load_question, question_of
from harness.question.question import Question
from harness.question.values import spelled
from harness.records.record import Estimate, Record, RunStatus
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus

if TYPE_CHECKING:
    import pandas

    from analysis.frame import Row

__all__ = [
    "Estimate",
    "Question",
    "Record",
    "RequestError",
    "RunConfig",
    "RunFailed",
    "RunStatus",
    "SweepResult",
    "compose",
    "load_runs",
    "run",
    "sweep",
]


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that `harness run` makes of the same overrides; its fields can be set."""
    return compose_run(_overrides(overrides))


def run(request: Sequence[str] | RunConfig = ()) -> Record:
    """Train, measure and evaluate one adapter, and return its record, as `harness run` does.

    A run that has ended well before is not trained again. How it ended stands in `record.status`: running out
    of memory and divergence are results and raise nothing.

    Args:
        request: overrides of the command line, such as `["quant=int4", "lora.rank=4"]`, or a configuration.

    Raises:
        RequestError: the request is wrong; nothing was touched.
        KeyboardInterrupt: asked to stop; the run has kept a checkpoint, and the same call goes on.
    """
    config = request if isinstance(request, RunConfig) else compose(request)
    record, _ = train_run(config)
    if record.status is RunStatus.interrupted:
        raise KeyboardInterrupt
    return record


def sweep(
    question: str | Path | Mapping[str, Any] | Question, overrides: Sequence[str] = ()
) -> "SweepResult":
    """Train what is left of a sweep, as `harness sweep` does, and return what it found.

    Args:
        question: the name of a question in sweeps/ or of a sweep that has begun, a file, a mapping with the
            keys of such a file and a `name`, in which an axis may be a list of values, or a question that was
            read before.
        overrides: of the command line; none beside a `Question`.

    Raises:
        RequestError: the question is wrong, or its sweep has begun as another one.
        RunFailed: run after run fails, so that the driver has given up.
        KeyboardInterrupt: asked to stop; every run in flight has a checkpoint, and the same call goes on.
    """
    asked = _question(question, _overrides(overrides))
    if asked.launcher is not None:
        raise RequestError(
            "a question with a launcher is submitted by `harness sweep`, which does not wait for its jobs; "
            "leave the launcher out here"
        )
    points, base = checked(asked)
    state = answer(asked, points, base)
    if state.status is SweepStatus.interrupted:
        raise KeyboardInterrupt
    return SweepResult(question=asked, state=state, out=Path(base.paths.out))


def load_runs(out: str | Path | None = None) -> "pandas.DataFrame":
    """Return a row for each run under `out`, or under the directory that runs use by default.

    A column is a key of the configuration (`lora.rank`), `quant` as the command line has it, a metric
    (`memory/peak_bytes`), an evaluation (`after.eval/loss`, with `.standard_error` and `.n`), a fact about
    the run (`status`, `wall_seconds`), its `role` and `trial` in a sweep, or where it came from
    (`provenance.commit`). Warns of records that cannot be read.

    Raises RequestError where there is no record.
    """
    from analysis.sources import load_runs as load_rows

    rows, problems = load_rows(Path(compose_run([]).paths.out if out is None else out).expanduser())
    return _frame(rows, problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """A sweep that has ended."""

    question: Question
    """The question as it was asked."""
    state: SweepState
    """The contents of `state.json`: trials, runs, confirmed cells."""
    out: Path
    """The directory `paths.out` of the sweep."""

    @property
    def directory(self) -> Path:
        """The sweep's own directory, with its question, its study and its report."""
        return SweepDirectory(self.out, self.question.name).path

    def confirmation(self) -> "pandas.DataFrame":
        """Return a row per confirmed cell: its point, its trial, and of each objective mean, interval and n.

        These are the sweep's result: fresh seeds, the split that `confirm` names, t-intervals of 95 %.
        """
        import pandas

        from analysis.intervals import mean_interval

        rows = []
        for line in self.state.confirmed:
            row: dict[str, Any] = {**line.point, "trial": line.trial}
            for metric, values in line.values.items():
                interval = mean_interval(values) if values else None
                row[metric] = interval and interval.mean
                row[f"{metric}.low"] = interval and interval.low
                row[f"{metric}.high"] = interval and interval.high
                row[f"{metric}.n"] = len(values)
            rows.append(row)
        return _with_numbers(pandas.DataFrame(rows), self._axes)

    def trials(self) -> "pandas.DataFrame":
        """Return a row per trial of the search: its point, status, feasibility and objectives.

        A search chooses by these numbers, so the best of them flatter; `confirmation` is what to report.
        """
        import pandas

        metrics = list(self.state.objectives)
        rows = [
            {"trial": line.number, **line.point, "status": line.status, "feasible": line.feasible}
            | dict(zip(metrics, line.values or [None] * len(metrics), strict=True))
            for line in self.state.trials
        ]
        return _with_numbers(pandas.DataFrame(rows), self._axes)

    def runs(self) -> "pandas.DataFrame":
        """Return a row per run, with the columns of `load_runs` and one for each axis of the question."""
        from analysis.frame import value_of
        from analysis.sources import load_sweep

        found = load_sweep(self.out, self.question.name)
        rows = [row | {axis: value_of(row, axis) for axis in self._axes} for row in found.rows]
        return _frame(rows, found.problems)

    def report(self) -> Path:
        """Write tables, figures and the page, as `harness report` does, and return the page's path."""
        from analysis.report import report_sweep

        return report_sweep(self.out, self.question.name).index

    @property
    def _axes(self) -> list[str]:
        return [axis.key for axis in self.question.space.axes]


def _overrides(overrides: Sequence[str]) -> list[str]:
    """Refuse one text in the place of several."""
    if isinstance(overrides, str):
        raise RequestError(
            f"overrides are a list of texts, got {overrides!r}; give [{overrides!r}]"
        )
    return list(overrides)


def _question(asked: str | Path | Mapping[str, Any] | Question, overrides: list[str]) -> Question:
    match asked:
        case Question():
            if overrides:
                raise RequestError(
                    f"{', '.join(overrides)}: a question that was read takes no overrides; give them where "
                    "it is read"
                )
            return asked
        case str() | Path():
            return load_question(named_question(str(asked), overrides), overrides)
        case _:
            name = asked.get("name")
            if not isinstance(name, str):
                raise RequestError(
                    f"a question needs a name, which its directory gets, got name={name!r}"
                )
            return question_of(_with_choices(asked), name, overrides)


def _with_choices(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Write an axis that is a list of values, as Python has them, in the grammar of a file."""
    space = asked.get("space")
    if not isinstance(space, Mapping):
        return dict(asked)
    axes = {
        key: f"choice({', '.join(map(spelled, entry))})" if isinstance(entry, list) else entry
        for key, entry in space.items()
    }
    return {**asked, "space": axes}


def _frame(rows: "Iterable[Row]", problems: Iterable[str]) -> "pandas.DataFrame":
    import pandas

    from analysis.frame import value_of

    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    plain = [
        {key: _plain(value) for key, value in row.items() if key != "point"}
        | {"quant": value_of(row, "quant")}
        for row in rows
    ]
    return pandas.DataFrame(plain)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _with_numbers(frame: "pandas.DataFrame", axes: Iterable[str]) -> "pandas.DataFrame":
    """Read the values of axes, which a point spells as text."""
    from analysis.frame import parsed_choice

    for axis in axes:
        if axis in frame:
            frame[axis] = [
                parsed_choice(value) if isinstance(value, str) else value for value in frame[axis]
            ]
    return frame
