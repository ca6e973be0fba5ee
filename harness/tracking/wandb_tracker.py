"""W&B as a mirror: one thread per run owns the wandb run, so that training neither waits for it nor dies.

wandb (0.3 s of import, 0.2–0.4 s of its service's start) is imported in that thread. Nothing but what
is logged leaves the process: no console text, code, argv, environment, git remote or crash reports.
"""

import math
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from harness.config.schema import TrackerConfig, TrackerName
from harness.records.answers import SAMPLE_COLUMNS, KeptAnswer, samples
from harness.records.metrics import METRICS, SERIES
from harness.records.metrics_log import check_metric_names, plain_number, spell_not_finite
from harness.records.record import Record, RunStatus, record_tree
from harness.records.redact import redact, redact_tree
from harness.records.scores import RowScores, scores_tree
from harness.tracking.final_values import final_values
from harness.tracking.wandb_file import has_ended, read_wandb_files

if TYPE_CHECKING:
    from wandb import Run, Settings, Table

FINISH_SECONDS = (
    120.0  # an upload over a slow line may take this long; what is then missing is noted
)
_FILE_SECONDS = 10.0
_BATCH_SECONDS = 1.0  # rows go to wandb in batches: a row of its own wakes four threads for it
_FLUSH_SECONDS = 2.0  # what wandb has taken is in its file so soon, not after its 15
_started_in: int | None = None  # process id
_start_lock = threading.Lock()  # wandb is imported and set up once, whatever the cohort's size


@dataclass(frozen=True, slots=True)
class _Row:
    step: int
    values: dict[str, Any]
    logged_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Earlier:
    """Rows that an earlier process of the run has logged, and may not have got as far as W&B."""

    rows: Sequence[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Finish:
    status: RunStatus
    values: dict[str, Any]
    """Final values, by name."""
    record: dict[str, Any]
    """The whole record but its configuration, which W&B has: what `harness report` reads back."""
    samples: list[Sequence[str]]
    scores: dict[str, Any]
    """Of the rows after training, by metric; empty where nobody compares them."""


@dataclass(slots=True)
class _End:
    """What a series has come to."""

    lowest: float = math.inf
    highest: float = -math.inf
    last: float = math.nan


class _Ends:
    """Lowest, highest and last value of each series; wandb's service would double a row's cost for them."""

    def __init__(self) -> None:
        self._of: dict[str, _End] = {}

    def add(self, values: Mapping[str, float | None]) -> None:
        """Take a row in; a NaN is neither low nor high."""
        for name, value in values.items():
            if value is not None:
                end = self._of.get(name)
                if end is None:
                    end = self._of[name] = _End()
                end.last = value
                if value < end.lowest:
                    end.lowest = value
                if value > end.highest:
                    end.highest = value

    def add_earlier(self, name: str, ends: Mapping[str, float]) -> None:
        """Take in what an earlier part of the run has left of a series."""
        if name in self._of:
            end = self._of[name]
            end.lowest = min(end.lowest, ends.get("min", math.inf))
            end.highest = max(end.highest, ends.get("max", -math.inf))

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the ends as wandb has them in a summary; of a series of NaN alone all are NaN."""
        return {
            name: {
                "min": end.lowest if end.lowest <= end.highest else end.last,
                "max": end.highest if end.lowest <= end.highest else end.last,
                "last": end.last,
            }
            for name, end in self._of.items()
        }


class WandbTracker:
    """One wandb run, fed through a queue. Call it from one thread."""

    def __init__(
        self,
        config: TrackerConfig,
        *,
        run_id: str,
        directory: Path,
        config_tree: Mapping[str, Any],
        waits: bool = False,
    ) -> None:
        """Start the thread that opens the run; `directory` exists and is the run's own.

        `waits`: only when the run has ended, so that starting W&B disturbs no step that is measured.
        """
        self._online = config.name is TrackerName.wandb_online
        self._arguments = {
            "project": redact(config.project),
            "entity": None if config.entity is None else redact(config.entity),
            "id": run_id,
            "name": redact(run_id),
            "group": None if config.group is None else redact(config.group),
            "job_type": redact(config.job_type),
            "tags": [redact(tag) for tag in config.tags],
            "config": spell_not_finite(redact_tree(config_tree)),
            "dir": str(directory),
            "resume": "allow" if self._online else None,
        }
        self._work: queue.SimpleQueue[_Row | _Earlier | _Finish] = queue.SimpleQueue()
        self._problems: list[str] = []
        self._ending = threading.Event()
        self._last_step = -1
        self._ends = _Ends()
        self._first_step = 0
        """The first step that W&B still takes: above 0 where an online run was resumed."""
        self._earlier_files = [] if self._online else list(directory.rglob("*.wandb"))
        """Offline files of earlier processes of the run."""
        self._logged_at: float | None = None
        """Of the last row that W&B has."""
        self._thread = threading.Thread(
            target=self._mirror,
            name=f"wandb {run_id}",
            daemon=True,  # a process that dies without `finish` must not hang on wandb
        )
        self._waits = waits
        if not waits:
            self._thread.start()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Queue one row; it takes microseconds, whatever W&B does."""
        assert step >= self._last_step, f"step {step} after step {self._last_step}"
        check_metric_names(values)
        self._last_step = step
        numbers = {name: plain_number(value) for name, value in values.items()}
        self._put(_Row(step, numbers, time.time()))

    def log_earlier(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Queue the rows of an earlier process, `step` first in each; those that W&B has are left out."""
        earlier: list[tuple[int, dict[str, Any]]] = []
        for row in rows:
            values = dict(row)
            earlier.append((int(values.pop("step") or 0), values))
        if earlier:
            self._last_step = earlier[-1][0]
            self._put(_Earlier(earlier))

    def finish(
        self,
        record: Record,
        answers: Sequence[KeptAnswer],
        scores: Mapping[str, RowScores] | None = None,
    ) -> list[str]:
        """End the run and wait until it is written, two minutes at most; return what went wrong."""
        numbers = {name: plain_number(value) for name, value in final_values(record).items()}
        tree = record_tree(record)
        del tree["config"]
        self._put(
            _Finish(
                status=record.status,
                values=spell_not_finite(numbers),  # wandb makes a NaN in a summary null
                record=tree,
                samples=samples(answers),
                scores=scores_tree(scores or {}),
            )
        )
        self._ending.set()
        if self._waits:
            self._thread.start()
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._problems.append(f"W&B did not finish within {FINISH_SECONDS:.0f} s")
        return list(self._problems)

    def _put(self, work: _Row | _Earlier | _Finish) -> None:
        if self._waits or self._thread.is_alive():  # else nobody would ever take it out again
            self._work.put(work)

    def _mirror(self) -> None:
        """Open the run, then do what is queued until it ends; runs in the thread.

        Whatever wandb raises is caught here and nowhere else: the mirror breaks, the run goes on.
        """
        try:
            run = start_run(self._arguments, online=self._online)
            for name in sorted(SERIES):
                run.define_metric(name, summary="none")
            self._first_step = run.step  # once: each time wandb asks its service and waits
            while self._apply(run, self._work.get()):
                if self._work.empty():
                    self._ending.wait(_BATCH_SECONDS)
        except Exception as error:
            self._problems.append(redact(f"W&B failed: {type(error).__name__}: {error}"))

    def _ends_of(self, run: "Run") -> dict[str, Any]:
        """Return the ends of each series; those of an online run begin where it first began."""
        if run.resumed:
            for name in sorted(SERIES):
                earlier = run.summary.get(name)
                if isinstance(earlier, Mapping):
                    self._ends.add_earlier(name, earlier)
        return self._ends.summary()

    def _apply(self, run: "Run", work: _Row | _Earlier | _Finish) -> bool:
        """Do one piece of work; False once the run has ended."""
        match work:
            case _Row():
                # A resumed online run already has the rows up to its last step.
                self._ends.add(work.values)
                if work.step >= self._first_step:
                    self._logged_at = work.logged_at
                    run.log(work.values | {"_timestamp": work.logged_at}, step=work.step)
            case _Earlier():
                kept = read_wandb_files(self._earlier_files).history
                begin = max(self._first_step, kept[-1]["step"] + 1 if kept else 0)
                for step, values in work.rows:
                    self._ends.add(values)
                    if step >= begin:
                        self._logged_at = time.time()
                        run.log(values | {"_timestamp": self._logged_at}, step=step)
            case _Finish():
                last: dict[str, Any] = {"samples": _table(work.samples)} if work.samples else {}
                if self._logged_at is not None:  # wandb gives a row the time of its last part
                    last["_timestamp"] = self._logged_at
                # Else the last row is committed later and written over the values below.
                run.log(last, step=max(run.step, self._last_step), commit=True)
                run.summary.update(spell_not_finite(self._ends_of(run)))
                run.summary.update(work.values)
                run.summary["record"] = work.record
                if work.scores:
                    run.summary["scores"] = work.scores
                # W&B has no place for a metric's unit.
                run.summary["units"] = {name: METRICS[name].unit for name in sorted(SERIES)}
                run.summary["status"] = work.status.value
                if not self._online:  # the one value of wandb's own summary that W&B shows
                    run.summary["_wandb"] = {"runtime": int(time.time() - run.start_time)}
                run.finish(exit_code=_exit_code(work.status))
                wait_for_file(Path(run.dir).parent, self._problems)
                return False
            case unknown:
                assert_never(unknown)
        return True


def start_run(arguments: dict[str, Any], *, online: bool) -> "Run":
    """Open a W&B run with these arguments of wandb.init, silently."""
    with _start_lock:
        _own_environment()
        import wandb

        settings = _settings(wandb.Settings, online=online)
        wandb.setup(settings)  # silences what is printed outside any run, too
    return wandb.init(**arguments, reinit="create_new", settings=settings)


def wait_for_file(directory: Path, problems: list[str]) -> None:
    """Wait until the file is whole: wandb's `finish` returns some milliseconds before it is."""
    deadline = time.monotonic() + _FILE_SECONDS
    while not all(has_ended(file) for file in directory.glob("*.wandb")):
        if time.monotonic() > deadline:
            problems.append(f"W&B left {directory} without an end")
            return
        time.sleep(0.002)


def _own_environment() -> None:
    """Prepare this process's first start of wandb; later calls do nothing."""
    global _started_in
    if _started_in == os.getpid():
        return
    _started_in = os.getpid()
    # wandb hands its service down to child processes, where a run id stays "in use" for ever once a
    # sibling that had it open was killed. Each process starts a service of its own instead.
    os.environ.pop("WANDB_SERVICE", None)
    # Crash reports would leave the machine, from offline runs too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _table(rows: Sequence[Sequence[str]]) -> "Table":
    import wandb

    return wandb.Table(columns=list(SAMPLE_COLUMNS), data=[list(row) for row in rows])


def _exit_code(status: RunStatus) -> int:
    """Return what makes W&B show the run as finished (0) or as failed (1)."""
    match status:
        case RunStatus.completed | RunStatus.pruned:
            return 0
        case (
            RunStatus.running
            | RunStatus.out_of_memory
            | RunStatus.diverged
            | RunStatus.failed
            | RunStatus.interrupted
        ):
            return 1
        case unknown:
            assert_never(unknown)


def _settings(settings: "type[Settings]", *, online: bool) -> "Settings":
    return settings(
        mode="online" if online else "offline",
        # Nothing on the terminal and nothing from it.
        silent=True,
        show_info=False,
        show_warnings=False,
        show_errors=False,
        console="off",
        # Nothing about the process: argv, environment, code and remotes may carry secrets.
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        # The summary is ours: offline, wandb would write two records of its own beside each row. Online
        # the setting would ask the server to make one.
        x_server_side_derived_summary=not online,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
        # Only files of this run, and only in its directory.
        symlink=False,
        use_dot_wandb=False,
    )
