"""Where rows and curves come from: run directories here, or what W&B holds (`analysis.wandb_runs`).

Every source returns rows and a sentence for each thing that it could not use; the rest is read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from analysis.frame import ALONE, PLACE_KEYS, ROWS, Role, Row, cost_key, flat_row
from analysis.histories import History, read_histories
from harness.errors import RequestError
from harness.parsing import Unreadable, read_yaml
from harness.records.answers import read_answers, samples
from harness.records.metrics import COHORT_SHARES
from harness.records.record import MeasuredIn, RecordError, RunDirectory, RunStatus, read_record
from harness.records.redact import redact, redact_tree
from harness.records.scores import read_scores
from harness.sweeping.state import SweepDirectory, read_state_tree

_NOT_RESULTS = frozenset((*PLACE_KEYS, "wall_seconds", "started_at", "notes", "error"))
_NOT_STARTED = frozenset({"waiting", "training", "elsewhere"})
_GROWING = (RunStatus.running, RunStatus.interrupted)
_STEP_ALONE = f"{ALONE}throughput/step_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepData:
    """One sweep as it stands on disk: what was asked, what was tried, and a row per run."""

    name: str
    question: str
    expect: str
    method: str
    objectives: dict[str, str]
    """Metric -> minimize or maximize."""
    base: tuple[str, ...]
    """Overrides of every run."""
    axes: tuple[str, ...]
    """Keys of the space, in the order asked."""
    asked: dict[str, Any]
    """sweep.yaml."""
    state: dict[str, Any]
    """state.json."""
    rows: list[Row]
    problems: list[str]
    directory: Path
    """Its place under `paths.out`, where the report goes."""

    def rows_of(self, role: Role | str) -> list[Row]:
        """Return the rows of one role."""
        return [row for row in self.rows if row["role"] == Role(role).value]

    @property
    def storage_url(self) -> str:
        """The SQLAlchemy url of the study: the one asked for, or the default place."""
        given = (self.asked.get("study") or {}).get("storage")
        return given or SweepDirectory(self.directory.parents[1], self.directory.name).storage


class Source(Protocol):
    """What a report is made of."""

    @property
    def report(self) -> str:
        """Name of the report's directory, so that reports of one sweep by source lie side by side."""
        ...

    def runs(self) -> tuple[list[Row], list[str]]:
        """Return a row for each run, and what could not be used. Raises RequestError where there is none."""
        ...

    def sweep(self, name: str) -> SweepData:
        """Return a sweep with its runs. Raises RequestError where it is not there."""
        ...

    def histories(self, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
        """Return the curves of the runs that have some."""
        ...

    def samples(self, run_id: str) -> list[Sequence[str]]:
        """Return a few generated answers of a run: prompt, reference, answer before and after training."""
        ...


@dataclass(frozen=True, slots=True)
class Records:
    """The records under `paths.out`."""

    out: Path
    report = "report"

    def runs(self) -> tuple[list[Row], list[str]]:
        """Return a row for each record."""
        return load_runs(self.out)

    def sweep(self, name: str) -> SweepData:
        """Return a sweep of its directory and its runs' records."""
        return load_sweep(self.out, name)

    def histories(self, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
        """Return curves from the runs' columns, or from metrics.jsonl."""
        return read_histories(self.out, run_ids, metrics)

    def samples(self, run_id: str) -> list[Sequence[str]]:
        """Return the first of the answers that the run's directory has."""
        return samples(read_answers(RunDirectory(self.out / "runs" / run_id).answers))


def load_runs(out: Path) -> tuple[list[Row], list[str]]:
    """Return a row for each record under `<out>/runs`, and what could not be used.

    Raises RequestError, saying where it looked, where there is no record at all.
    """
    directories = sorted(path.parent for path in (out / "runs").glob("*/run.json"))
    if not directories:
        raise RequestError(
            f"no record under {(out / 'runs').absolute()}: `harness run` leaves one there; "
            "paths.out=DIR looks elsewhere"
        )
    rows, problems = _read(directories)
    rows, unlike = unique_rows(rows)
    return rows, problems + unlike


def load_sweep(out: Path, name: str, *, only_confirmed: bool = False) -> SweepData:
    """Return a sweep with the rows of its runs, each with its role, its trial and its point.

    Those of the confirmation hold the scores of the test rows too.

    `only_confirmed`: no rows but the confirmation's, which answer the question.

    Raises RequestError where no sweep of that name has run there, or its state cannot be read.
    """
    directory = out / "sweeps" / name

    def read(run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
        places = [RunDirectory(out / "runs" / run_id) for run_id in run_ids]
        return _read(place.path for place in places if place.record.exists())

    state = read_state_tree(SweepDirectory(out, name))
    asked, damage = _asked(directory)
    sweep = assembled(state, asked, directory, read, only_confirmed=only_confirmed)
    sweep.problems.extend(damage)
    for row in sweep.rows_of(Role.confirmation):
        scores = read_scores(RunDirectory(out / "runs" / row["run_id"]).scores, "after")
        row |= {f"{ROWS}{metric}": of_rows for metric, of_rows in scores.items()}
    return sweep


def assembled(
    state: dict[str, Any],
    asked: dict[str, Any],
    directory: Path,
    read: Callable[[Sequence[str]], tuple[list[Row], list[str]]],
    *,
    only_confirmed: bool = False,
) -> SweepData:
    """Return a sweep of its state, its question and what `read` finds of the runs that it is asked for."""
    roles, confirmation = run_roles(state), Role.confirmation.value
    wanted = [each for each, role in roles.items() if role == confirmation or not only_confirmed]
    rows, problems = read(wanted)
    found = {row["run_id"] for row in rows}
    missing = [run_id for run_id in wanted if run_id not in found]
    rows, unlike = unique_rows(rows)
    ended = {line["run_id"] for line in state["runs"] if line["status"] not in _NOT_STARTED}
    problems += unlike
    problems += [f"run {run_id} has no record" for run_id in missing if run_id in ended]
    _place_rows(rows, state)
    _take_costs(rows)
    return SweepData(
        name=state["name"],
        question=redact(state["question"]),
        expect=redact(state["expect"]),
        method=state["method"],
        objectives=dict(state["objectives"]),
        base=tuple(asked.get("base") or ()),
        axes=_axes(asked, state),
        asked=asked,
        state=state,
        rows=rows,
        problems=problems,
        directory=directory,
    )


def run_roles(state: Mapping[str, Any]) -> dict[str, str]:
    """Return every run of a sweep with its role, in the order of the trials, then of the confirmation.

    They follow from the trials, not from `runs`: that is what one driver had in its hands, in its own order.
    """
    roles: dict[str, str] = {}
    for trial in state["trials"]:
        roles |= dict.fromkeys(trial["runs"], Role.search.value)
        if (probe := trial.get("probe")) is not None:
            roles[probe] = Role.probe.value
    for confirmed in state["confirmed"]:
        roles |= dict.fromkeys(confirmed["runs"], Role.confirmation.value)
    for line in state["runs"]:
        roles.setdefault(line["run_id"], line["role"])
    return roles


def unique_rows(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows with each run once; runs of one id with different results are named and left out."""
    by_id: dict[str, list[Row]] = {}
    for row in rows:
        by_id.setdefault(row["run_id"], []).append(row)
    kept, problems = [], []
    for run_id, same in by_id.items():
        different = [row for row in same[1:] if _results(row) != _results(same[0])]
        if different:
            keys = _different_keys(same[0], different[0])
            problems.append(
                f"{len(same)} records have the run id {run_id} and different results "
                f"({', '.join(keys)}): none of them is used"
            )
        else:
            kept.append(same[0])
    return kept, problems


def _results(row: Row) -> dict[str, str]:
    return {
        key: repr(value)
        for key, value in row.items()
        if key not in _NOT_RESULTS and not key.startswith("provenance.")
    }


def _different_keys(a: Row, b: Row) -> list[str]:
    one, other = _results(a), _results(b)
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))[:4]


def _read(directories: Iterable[Path]) -> tuple[list[Row], list[str]]:
    """Read records one by one: ten thousand of them at once would hold every tree in memory twice."""
    rows, problems = [], []
    for directory in directories:
        try:
            rows.append(flat_row(read_record(RunDirectory(directory).record)))
        except RecordError as error:
            problems.append(f"{error}; left out")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # Its configuration or provenance is a tree of other things than any run writes.
            said = f"{type(error).__name__}: {error}"
            problems.append(f"{RunDirectory(directory).record} is damaged ({said}); left out")
    return rows, problems


def _asked(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the kept question, and what is wrong with it: the report says that, and goes on without."""
    path = directory / "sweep.yaml"
    try:
        asked = read_yaml(path.read_bytes())
        if isinstance(asked, dict):
            parts = (asked.get("space") or {}, asked.get("study") or {}, asked.get("base") or [])
            if [type(part) for part in parts] == [dict, dict, list]:
                return redact_tree(asked), []
        raise Unreadable("it has no question")
    except (OSError, Unreadable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return {}, [
            f"{path} cannot be used ({reason}): how to reproduce this is not shown in full; "
            f"`harness sweep` writes it again"
        ]


def _axes(asked: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that the trials' points have, in the order of the question's space."""
    found = {key: None for trial in state["trials"] for key in trial["point"]}
    space = [key for key in (asked.get("space") or {}) if key in found or not found]
    return tuple(dict.fromkeys([*space, *found]))


def _take_costs(rows: Sequence[Row]) -> None:
    """Give each run what a probe of its cost measured, where W&B's file of it had its end before."""
    probes = [row for row in rows if row["measured_in"] is MeasuredIn.probe]
    costs = {
        cost_key(row): {f"{ALONE}{name}": row[name] for name in COHORT_SHARES if name in row}
        for row in probes
        if row["status"] is RunStatus.completed
    }
    for row in rows if costs else ():
        known = row["measured_in"] is MeasuredIn.probe or _STEP_ALONE in row
        if not known and row["status"] not in _GROWING:
            row |= costs.get(cost_key(row), {})


def _place_rows(rows: Iterable[Row], state: Mapping[str, Any]) -> None:
    """Write role, trial and point into each row; a run of several trials belongs to the first."""
    points = {trial["number"]: trial["point"] for trial in state["trials"]}
    trials: dict[str, int] = {}
    for trial in state["trials"]:
        for run_id in (*trial["runs"], trial.get("probe")):
            trials.setdefault(run_id, trial["number"])
    for confirmed in state["confirmed"]:
        points.setdefault(confirmed["trial"], confirmed["point"])
        for run_id in confirmed["runs"]:
            trials.setdefault(run_id, confirmed["trial"])
    roles = run_roles(state)
    for row in rows:
        own = row["trial"] if row.get("provenance.sweep") == state["name"] else None
        row["role"] = roles[row["run_id"]]
        row["trial"] = trials.get(row["run_id"], own)
        row["point"] = points.get(row["trial"], {})
