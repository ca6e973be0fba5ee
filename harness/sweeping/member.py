"""A driver of a sweep from its workers' start to its last state: alone on it, or a member of several."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed, disk_refusal, first_line
from harness.question.load import question_text
from harness.question.points import Point
from harness.question.question import Question
from harness.records.redact import message
from harness.records.run_directory import RunDirectory, remove, set_aside, write_text
from harness.study.database import damage_of, open_engine
from harness.study.leases import Leases
from harness.study.study import Study
from harness.sweeping.artifacts import RunArtifacts
from harness.sweeping.check import check_without_device, refuse_what_does_not_fit
from harness.sweeping.display import SweepDisplay
from harness.sweeping.driver import Driver
from harness.sweeping.instructions import Inbox, Instructions, as_told
from harness.sweeping.messages import Role
from harness.sweeping.pool import Pool, devices_for, workers_on_cpu
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, write_state
from harness.sweeping.tenancy import Alone, Leased, Tenancy
from harness.sweeping.trials import Trials
from harness.sweeping.view import View
from harness.training.stop import StopRequest

STATE_SECONDS = 1.0
DRAW_SECONDS = 0.2
"""A state is drawn up at most this often: that looks at every run there is."""
OUTAGE_SECONDS = 6 * 3600.0
"""Seconds that a member waits for a server that does not answer."""
OUTAGE_PAUSE_SECONDS = 2.0
MAX_OUTAGES = 100
"""Outages after which a member gives up: a server that is always gone at once has another fault."""

Points = Sequence[tuple[Point, RunConfig]]


class Member:
    """A driver of a sweep, with workers of its own."""

    def __init__(
        self,
        question: Question,
        points: Points,
        directory: SweepDirectory,
        stop: StopRequest,
        *,
        collect: bool,
    ) -> None:
        """`collect`: bring the runs of all members here in the end, where they do not share a file system."""
        self._question = question
        self._points = points
        self._directory = directory
        self._stop = stop
        self._collect = collect
        self.ends_the_sweep = False
        """Whether what is done once, when a sweep has finished, is this member's to do."""
        self._leases = _leases_of(question)
        logs = (
            directory.workers if self._leases is None else directory.workers / self._leases.member
        )
        self._pool = Pool(logs, question.resources.hang_seconds)

    def run(self) -> SweepState:
        """Train what is left of the sweep, or this member's part of it, until all is done or `stop` is set.

        Raises RequestError where another driver has the sweep, or where model and data refuse a point, and
        RunFailed where run after run fails.
        """
        with self._directory.lock(shared=self._leases is not None):
            for attempt in itertools.count():
                asks = self._collect and attempt == 0  # a member that begins anew asks nothing new
                try:
                    return self._train(asks=asks)
                except (StorageInternalError, SQLAlchemyError) as error:
                    if self._leases is None:
                        raise _study_failed(self._directory.storage, error) from error
                    if not is_outage(error) or attempt == MAX_OUTAGES:
                        raise _study_failed("the server's", error) from error
                    self._wait_for_server(error)
                except Exception as error:
                    if self._leases is None or not is_outage(error) or attempt == MAX_OUTAGES:
                        raise
                    self._wait_for_server(error)
        raise AssertionError("the loop ends by itself")

    def _train(self, *, asks: bool) -> SweepState:
        """Start workers, and drive them until nothing is left, a stop is asked for, or the server is gone."""
        told = Instructions(self._directory.instructions).read_on()
        self._question = question = as_told(self._question, told)
        file = self._directory.question
        try:
            self._start_workers()
            if not file.exists():
                refuse_what_does_not_fit(self._points, self._pool)
            if self._collect or not file.exists():
                write_text(file, question_text(question))
            maker = RequestMaker(question)
            maker.request(self._points[0][0], [], Role.search)  # before others wait for our turn
            study = open_study(question, self._points, self._directory, self._leases, asks=asks)
            return self._drive(study, maker)
        except Exception as error:
            if is_outage(error):
                self._pool.stop()  # what is in flight keeps a checkpoint
            self._pool.kill()
            if self._leases is not None and not is_outage(error):
                self._leases.give_back()
            raise
        finally:
            self._pool.kill()

    def _start_workers(self) -> None:
        search = self._question.search
        configs = (config for _, config in self._points)
        on_cpu = partial(workers_on_cpu, configs, search.trials or len(self._points))
        for device in devices_for(self._question.resources.devices, on_cpu):
            self._pool.start(device)

    def _drive(self, study: Study, maker: RequestMaker) -> SweepState:
        """Show and write down how the sweep stands while it is driven."""
        with SweepDisplay() as display:

            def say(text: str) -> None:
                with contextlib.suppress(OSError):
                    self._directory.append_log(text)
                display.say(text)

            tenancy = _tenancy_of(study, self._question, say)
            trials = Trials(self._question, study, maker, tenancy)
            inbox = Inbox(self._directory, study, say)
            driver = Driver(trials, self._pool, self._stop, inbox)
            view = View(driver, _runs_beside(self._directory))
            drawn_at = written_at = 0.0
            try:
                for _ in driver.drive():
                    while driver.trials.ledger.damaged:
                        say(driver.trials.ledger.damaged.pop())
                    if time.monotonic() - drawn_at < DRAW_SECONDS:
                        continue
                    state = view.state()
                    display.show(state)
                    drawn_at = time.monotonic()
                    if time.monotonic() - written_at >= STATE_SECONDS:
                        self._write_state(state, driver)
                        written_at = time.monotonic()
                if driver.is_finished:
                    if self._collect:
                        tenancy.collect(_runs_beside(self._directory))
                    self.ends_the_sweep = self._ends(view.state(), tenancy)
                tenancy.leave()
            finally:
                self._pool.kill()
                driver.say_interrupted()
                state = view.state()
                ended = SweepStatus.finished if driver.is_finished else SweepStatus.interrupted
                state.status = ended
                self._write_state(state, driver)
                study.close()
        if driver.complaint is not None:
            with contextlib.suppress(OSError):
                self._directory.append_log(driver.complaint)
            raise RunFailed(driver.complaint)
        return state

    def _ends(self, state: SweepState, tenancy: Tenancy) -> bool:
        """Whether this member has all runs of a finished sweep, and is the first of those that have."""
        told = [run_id for trial in state.trials for run_id in trial.runs]
        told += [run_id for confirmed in state.confirmed for run_id in confirmed.runs]
        runs = _runs_beside(self._directory)  # members need not share a file system
        if not all(RunDirectory(runs / run_id).record.exists() for run_id in told):
            return False
        item = f"the end of a sweep of {len(told)} runs"  # one that is asked for more ends again
        if not tenancy.take(item):
            return False
        with tenancy.ending(item) as is_ours:
            return is_ours

    def _write_state(self, state: SweepState, driver: Driver) -> None:
        """Write how the sweep stands; a disk that refuses it lets the driver stop, with checkpoints."""
        try:
            write_state(self._directory, state)
        except OSError as error:
            driver.halt(f"{self._directory.state} cannot be written: {error.strerror}")

    def _wait_for_server(self, error: Exception) -> None:
        """Wait until the study's server answers again; raises KeyboardInterrupt when a stop is asked for.

        The study says everything that a member has to know, so it begins anew from there.
        """
        said = first_line(error.__cause__ or error)
        line = f"the study's server is gone ({said}); runs keep their checkpoints, and wait for it"
        self._directory.append_log(line)
        print(message(f"harness: {line}"), file=sys.stderr)
        assert self._question.study.storage is not None
        give_up = time.monotonic() + OUTAGE_SECONDS
        while not self._stop:
            time.sleep(OUTAGE_PAUSE_SECONDS)
            try:
                open_engine(self._question.study.storage).dispose()
                return
            except RequestError as refused:
                if time.monotonic() > give_up:
                    raise RunFailed(f"{refused}, for {OUTAGE_SECONDS / 3600:.0f} hours") from error
        raise KeyboardInterrupt


def _study_failed(where: str, error: Exception) -> RunFailed:
    said = first_line(error.__cause__ or error)
    return RunFailed(
        f"the study's database ({where}) failed: {said}; every run in flight has a checkpoint, and the same "
        "command goes on, with what the records say where the study has lost it"
    )


def is_outage(error: BaseException | None) -> bool:
    """Whether an error says that the study's server is gone, or has ended a connection."""
    if isinstance(error, (StorageInternalError, PendingRollbackError)):
        # Optuna's, around SQLAlchemy's; and that of a query which was repeated on a lost connection.
        return is_outage(error.__cause__ or error.__context__)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


def begin_sweep(question: Question, points: Points, directory: SweepDirectory) -> None:
    """Create the study of a sweep that others will train, after checking its points; trains nothing.

    Raises RequestError where a driver works on it alone, or where model and data refuse a point.
    """
    with directory.lock(shared=True):
        if not directory.question.exists():
            check_without_device(points, directory.workers)
        write_text(directory.question, question_text(question))
        study = open_study(question, points, directory, _leases_of(question))
        tenancy = _tenancy_of(study, question, directory.append_log)
        trials = Trials(question, study, RequestMaker(question), tenancy)
        pool = Pool(directory.workers, question.resources.hang_seconds)
        state = View(Driver(trials, pool, StopRequest()), _runs_beside(directory)).state()
        state.status = SweepStatus.interrupted  # until the first member has begun
        write_state(directory, state)
        tenancy.leave()
        study.close()


def open_study(
    question: Question,
    points: Points,
    directory: SweepDirectory,
    leases: Leases | None,
    *,
    asks: bool = True,
) -> Study:
    """Create or load the study of a question; `asks`: members that join are to answer it as it is now."""
    steps = {config.optim.steps for _, config in points}
    every = {config.eval.every_steps for _, config in points}
    opened = partial(
        Study.open,
        question,
        question.study.storage or directory.storage,
        eval_every_steps=every.pop() if len(every) == 1 else None,
        total_steps=steps.pop() if len(steps) == 1 else None,
        leases=leases,
        asks=asks,
    )
    if question.study.storage is not None:
        return opened()
    fault = damage_of(directory.study)
    try:
        if fault is None:
            return opened()
    except RequestError:
        raise
    # What is well-formed as a database and not as a study makes Optuna raise whatever its values make it.
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        fault = f"{type(error).__name__}: {error}"
    except (StorageInternalError, SQLAlchemyError) as error:
        if disk_refusal(error) is not None:
            raise
        fault = first_line(error.__cause__ or error)
    aside = set_aside(directory.study)
    for more in ("-wal", "-shm", "-journal"):  # what belongs to it and to no other
        remove(directory.study.with_name(directory.study.name + more))
    said = f"{directory.study} is damaged ({fault}); set aside as {aside.name}"
    directory.append_log(said)
    print(message(f"harness: {said}; its trials are told again from the records"), file=sys.stderr)
    return opened()


def _leases_of(question: Question) -> Leases | None:
    """Return this member's leases where others may work on the study too."""
    study = question.study
    if not study.is_shared:
        return None
    assert study.storage is not None
    engine = open_engine(study.storage)
    return Leases(engine, question.name, study.heartbeat_seconds)


def _runs_beside(directory: SweepDirectory) -> Path:
    """Return the directory of all runs under the same `paths.out`."""
    return directory.path.parents[1] / "runs"


def _tenancy_of(study: Study, question: Question, say: Callable[[str], None]) -> Tenancy:
    if study.leases is None:
        return Alone()
    place = question.study.artifacts
    artifacts = None if place is None else RunArtifacts(study, place)
    return Leased(study.leases, artifacts, say)
