"""What W&B holds of runs and sweeps: offline `.wandb` files, or a project online by the public API.

A run's summary has its whole record, without the configuration, which W&B has of its own; a sweep has a run
of its own with its question and its state. wandb is imported only by the functions that read what it wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from analysis.frame import ROWS, Role, Row, flat_row
from analysis.histories import History, curves_of
from analysis.sources import SweepData, assembled, unique_rows
from harness.errors import RequestError, near_names
from harness.parsing import Unreadable, read_json, shaped
from harness.records.record import Record, RecordError, RunStatus, record_of_tree
from harness.records.scores import scores_of_tree
from harness.tracking.wandb_file import WandbHistory, read_wandb_files

_TIMEOUT_SECONDS = 60
"""Of one question to the server: wandb's own 19 are short for a page of large summaries."""
SWEEP = "sweep-"
"""What the id of a sweep's own run begins with; the sweep's name follows."""


@dataclass(frozen=True)
class WandbFiles:
    """The offline files below a directory, however they lie there."""

    out: Path
    report = "report_wandb_offline"

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The files of each run by its id, which their names have: `run-<id>.wandb`."""
        found: dict[str, list[Path]] = {}
        for file in sorted(self.out.rglob("*.wandb")):
            found.setdefault(file.stem.removeprefix("run-"), []).append(file)
        if not found:
            raise RequestError(
                f"no .wandb file under {self.out.absolute()}: tracker=wandb_offline writes them into a run's "
                "directory; paths.out=DIR looks elsewhere"
            )
        return found

    def _read(self, run_id: str) -> WandbHistory:
        return read_wandb_files(self._files[run_id])

    def runs(self) -> tuple[list[Row], list[str]]:
        """Return a row for each run that has files."""
        return self._rows([run_id for run_id in self._files if not run_id.startswith(SWEEP)])

    def _rows(self, run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
        rows, problems = [], []
        for run_id in run_ids:
            if run_id not in self._files:
                continue
            run = self._read(run_id)
            problems += run.problems
            if run.run_id is None:
                continue
            _add(rows, problems, run.run_id, run.config, run.summary)
        rows, unlike = unique_rows(rows)
        return rows, problems + unlike

    def sweep(self, name: str) -> SweepData:
        """Return a sweep from the file of its own run and from those of its runs."""
        if SWEEP + name not in self._files:
            raise _no_sweep(str(self.out.absolute()), name, self._files)
        run = self._read(SWEEP + name)
        sweep = _sweep(run.config, run.summary, self.out, name, self._rows)
        for row in sweep.rows_of(Role.confirmation):
            row |= _scores(self._read(row["run_id"]).summary)
        return sweep

    def histories(self, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
        """Return the curves of the runs that have files."""
        wanted = tuple(metrics)
        found = {}
        for run_id in dict.fromkeys(run_ids):
            if run_id in self._files:
                found[run_id] = History(
                    curves=curves_of(self._read(run_id).history, wanted), num_damaged_lines=0
                )
        return found

    def samples(self, run_id: str) -> list[Sequence[str]]:
        """Return the answers of the table that the newest of the run's files has beside it."""
        places = [file.parent / "files/media/table" for file in self._files.get(run_id, ())]
        tables = sorted(table for place in places for table in place.glob("samples_*.table.json"))
        return [] if not tables else _table_rows(tables[-1])


def _table_rows(file: Path) -> list[Sequence[str]]:
    """Return the rows of a table of texts as W&B keeps it; none of a file that is damaged."""
    try:
        tree = read_json(file.read_bytes())
        rows = shaped(list[list[str]], tree.get("data") if isinstance(tree, dict) else None)
    except (OSError, Unreadable):
        return []
    return [*rows]


@dataclass(frozen=True)
class WandbProject:
    """A project online: `entity/project`, or `project` of the entity that is logged in."""

    path: str
    out: Path
    """Where the report goes."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Runs of the public API by id, as they came with their pages."""
    report = "report_wandb"

    @cached_property
    def _api(self) -> Any:
        try:
            import wandb
        except ImportError:
            raise RequestError("--source wandb needs the package wandb") from None
        try:
            return wandb.Api(timeout=_TIMEOUT_SECONDS)
        except Exception as error:  # whatever the network, the server or the client raises
            raise RequestError(f"W&B cannot be reached: {error}") from error

    def _runs(self, filters: dict[str, Any]) -> list[Any]:
        api = self._api
        try:
            # Not lazy: configuration and summary come with the page, and not run by run.
            runs = list(api.runs(self.path, filters=filters, order="+created_at", lazy=False))
        except Exception as error:
            raise RequestError(f"W&B project {self.path} cannot be read: {error}") from error
        self.seen.update({run.id: run for run in runs})
        return runs

    def runs(self) -> tuple[list[Row], list[str]]:
        """Return a row for each run of the project, by run id."""
        runs = self._runs({})
        return self._rows_of(run for run in runs if not run.id.startswith(SWEEP))

    def _rows_of(self, runs: Iterable[Any]) -> tuple[list[Row], list[str]]:
        rows, problems = [], []
        for run in sorted(runs, key=lambda run: run.id):
            _add(rows, problems, run.id, dict(run.config), _plain(run.summary))
        if not rows and not problems:
            raise RequestError(f"W&B project {self.path} has no run")
        rows, unlike = unique_rows(rows)
        return rows, problems + unlike

    def sweep(self, name: str) -> SweepData:
        """Return a sweep from the runs of the group that has its name."""
        runs = {run.id: run for run in self._runs({"group": name})}
        if SWEEP + name not in runs:
            raise _no_sweep(f"W&B project {self.path}", name, [run.id for run in self._runs({})])
        own = runs[SWEEP + name]

        def read(run_ids: Sequence[str]) -> tuple[list[Row], list[str]]:
            rows, problems = [], []
            for run_id in run_ids:
                if run_id in runs:
                    run = runs[run_id]
                    _add(rows, problems, run_id, dict(run.config), _plain(run.summary))
            return rows, problems

        sweep = _sweep(dict(own.config), _plain(own.summary), self.out, name, read)
        for row in sweep.rows_of(Role.confirmation):
            row |= _scores(_plain(runs[row["run_id"]].summary))
        return sweep

    def histories(self, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, History]:
        """Return the curves of runs, all rows of them."""
        wanted, found = tuple(metrics), {}
        for run_id in filter(self.seen.__contains__, dict.fromkeys(run_ids)):
            try:
                rows = list(self.seen[run_id].scan_history())
            except Exception as error:
                raise RequestError(
                    f"the history of W&B run {run_id} cannot be read: {error}"
                ) from error
            steps = [{"step": row.pop("_step")} | row for row in rows]
            found[run_id] = History(curves=curves_of(steps, wanted), num_damaged_lines=0)
        return found

    def samples(self, run_id: str) -> list[Sequence[str]]:
        """Return the rows of the run's table of answers, where it logged one."""
        try:
            files = self.seen[run_id].files(pattern="media/table/samples_%")
            newest = max(files, key=lambda file: file.name, default=None)
            if newest is None:
                return []
            with TemporaryDirectory() as place, newest.download(root=place) as table:
                return _table_rows(Path(table.name))
        except Exception as error:
            raise RequestError(
                f"the answers of W&B run {run_id} cannot be read: {error}"
            ) from error


def _add(
    rows: list[Row],
    problems: list[str],
    run_id: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """Add the row of one run, or say why it has none."""
    if not isinstance(summary.get("record"), dict):
        # Killed, or still running: W&B has the configuration and the rows so far.
        rows.append(
            flat_row(Record(run_id=run_id, status=RunStatus.interrupted, config=dict(config)))
        )
        return
    try:
        rows.append(flat_row(record_of_tree(summary["record"] | {"config": dict(config)}, run_id)))
    except RecordError as error:
        problems.append(f"{error}; left out")


def _scores(summary: Mapping[str, Any]) -> Row:
    """Return what a row has of the scores of a confirmed run's test rows."""
    scores = scores_of_tree(summary.get("scores"))
    return {f"{ROWS}{metric}": of_rows for metric, of_rows in scores.items()}


def _sweep(
    config: Mapping[str, Any], summary: Mapping[str, Any], out: Path, name: str, read: Any
) -> SweepData:
    state = summary.get("state")
    if not isinstance(state, dict):
        raise RequestError(f"the W&B run of the sweep {name} has no state: it has not ended yet")
    return assembled(dict(state), dict(config), out / "sweeps" / name, read)


def _no_sweep(place: str, name: str, run_ids: Iterable[str]) -> RequestError:
    known = sorted(each.removeprefix(SWEEP) for each in run_ids if each.startswith(SWEEP))
    return RequestError(
        f"{place} has no W&B run of a sweep {name}{near_names(name, known)}; there are: "
        f"{', '.join(known) or 'none'}"
    )


def _plain(summary: Any) -> dict[str, Any]:
    """Return a summary of the public API as plain trees."""
    return {key: _tree(value) for key, value in summary.items() if not key.startswith("_")}


def _tree(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: _tree(each) for key, each in value.items()}
    return value
