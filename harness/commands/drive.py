"""One driver of a sweep from its workers' start to its last state: alone on it, or a member of several."""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import yaml
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from harness.config.schema import RunConfig
from harness.errors import RequestError, RunFailed
from harness.question.check_space import Point
from harness.question.question import Question
from harness.records.run_directory import write_text
from harness.study.leases import Leases
from harness.study.storage import open_engine
from harness.study.study import Study
from harness.sweeping.check import check_without_device, refuse_what_does_not_fit
from harness.sweeping.cores import workers_on_cpu
from harness.sweeping.display import SweepDisplay
from harness.sweeping.driver import Driver
from harness.sweeping.messages import Role
from harness.sweeping.pool import Pool, devices_for
from harness.sweeping.requests import RequestMaker
from harness.sweeping.sharing import SharedTrials
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, write_state
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
"""Outages after which the member gives up: a server that is always gone at once has another fault."""

Points = Sequence[tuple[Point, RunConfig]]


def train_sweep(
    question: Question,
    points: Points,
    directory: SweepDirectory,
    stop: StopRequest,
    *,
    collect: bool,
) -> SweepState:
    """Train what is left of a sweep, or this member's part of it, until all is done or `stop` is asked for.

    `collect`: bring the runs of all members here in the end, where they do not share a file system. Raises
    RequestError where another driver has the sweep, or where model and data refuse a point, and RunFailed
    where run after run fails.
    """
    leases = _leases_of(question)
    with directory.lock(shared=leases is not None):
        for attempt in itertools.count():
            asks = collect and attempt == 0  # a member that begins anew asks nothing new
            try:
                return _train(question, points, directory, stop, leases, collect, asks=asks)
            except Exception as error:
                if leases is None or not _is_outage(error) or attempt == MAX_OUTAGES:
                    raise
                _wait_for_server(question, directory, stop, error)
    raise AssertionError("the loop ends by itself")


def _train(
    question: Question,
    points: Points,
    directory: SweepDirectory,
    stop: StopRequest,
    leases: Leases | None,
    collect: bool,
    *,
    asks: bool,
) -> SweepState:
    """Start workers, and drive them until nothing is left, `stop` is asked for, or the server is gone."""
    logs = directory.workers if leases is None else directory.workers / leases.member
    pool = Pool(logs, question.resources.hang_seconds)
    try:
        runs = (config for _, config in points)
        on_cpu = partial(workers_on_cpu, runs, question.search.trials or len(points))
        for device in devices_for(question.resources.devices, on_cpu):
            pool.start(device)
        if not directory.question.exists():
            refuse_what_does_not_fit(points, pool)
        if collect or not directory.question.exists():
            write_text(directory.question, question_text(question))
        maker = RequestMaker(question)
        maker.request(points[0][0], [], Role.search)  # before others wait for this member's turn
        study = open_study(question, points, directory, leases, asks=asks)
        return _drive(study, question, maker, directory, pool, stop, collect)
    except Exception as error:
        if _is_outage(error):
            pool.stop()  # what is in flight keeps a checkpoint
        pool.kill()
        if leases is not None and not _is_outage(error):
            leases.give_back()
        raise
    finally:
        pool.kill()


def _is_outage(error: BaseException | None) -> bool:
    """Whether an error says that the study's server is gone, or has ended a connection."""
    if isinstance(error, StorageInternalError):  # Optuna's, around what SQLAlchemy raised
        return _is_outage(error.__cause__)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


def _wait_for_server(
    question: Question, directory: SweepDirectory, stop: StopRequest, error: Exception
) -> None:
    """Wait until the study's server answers again; raises KeyboardInterrupt when a stop is asked for.

    The study says everything that a member has to know, so it begins anew from there.
    """
    said = str(error.__cause__ or error).splitlines()[0]
    line = f"the study's server is gone ({said}); runs keep their checkpoints, and wait for it"
    directory.append_log(line)
    print(f"harness: {line}", file=sys.stderr)
    assert question.study.storage is not None
    give_up = time.monotonic() + OUTAGE_SECONDS
    while not stop:
        time.sleep(OUTAGE_PAUSE_SECONDS)
        try:
            open_engine(question.study.storage).dispose()
            return
        except RequestError as refused:
            if time.monotonic() > give_up:
                raise RunFailed(f"{refused}, for {OUTAGE_SECONDS / 3600:.0f} hours") from error
    raise KeyboardInterrupt


def begin_sweep(question: Question, points: Points, directory: SweepDirectory) -> None:
    """Create the study of a sweep that others will train, after checking its points; trains nothing.

    Raises RequestError where a driver works on it alone, or where model and data refuse a point.
    """
    with directory.lock(shared=True):
        if not directory.question.exists():
            check_without_device(points, directory)
        write_text(directory.question, question_text(question))
        study = open_study(question, points, directory, _leases_of(question))
        trials = _trials_of(study, question, RequestMaker(question), directory.append_log)
        pool = Pool(directory.workers, question.resources.hang_seconds)
        state = View(Driver(trials, pool, StopRequest())).state()
        state.status = SweepStatus.interrupted  # until the first member has begun
        write_state(directory, state)
        trials.leave()
        study.close()


def question_text(question: Question) -> str:
    """Return a question as YAML that `harness sweep FILE` takes."""
    return yaml.safe_dump(question.tree(), sort_keys=False, allow_unicode=True)


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
    return Study.open(
        question,
        question.study.storage or directory.storage,
        eval_every_steps=every.pop() if len(every) == 1 else None,
        total_steps=steps.pop() if len(steps) == 1 else None,
        leases=leases,
        asks=asks,
    )


def _leases_of(question: Question) -> Leases | None:
    """Return this member's leases where others may work on the study too."""
    study = question.study
    if not study.is_shared:
        return None
    assert study.storage is not None
    engine = open_engine(study.storage)
    return Leases(engine, question.name, study.heartbeat_seconds)


def _drive(
    study: Study,
    question: Question,
    maker: RequestMaker,
    directory: SweepDirectory,
    pool: Pool,
    stop: StopRequest,
    collect: bool,
) -> SweepState:
    with SweepDisplay() as display:
        trials = _trials_of(study, question, maker, _teller(directory, display))
        driver = Driver(trials, pool, stop)
        view = View(driver)
        drawn_at = written_at = 0.0
        try:
            for _ in driver.drive():
                if time.monotonic() - drawn_at < DRAW_SECONDS:
                    continue
                state = view.state()
                display.show(state)
                drawn_at = time.monotonic()
                if time.monotonic() - written_at >= STATE_SECONDS:
                    write_state(directory, state)
                    written_at = time.monotonic()
            if driver.is_finished and collect:
                trials.collect(directory.path.parents[1] / "runs")
            trials.leave()
        finally:
            state = view.state()
            ended = SweepStatus.finished if driver.is_finished else SweepStatus.interrupted
            state.status = ended
            write_state(directory, state)
            study.close()
    if driver.complaint is not None:
        directory.append_log(driver.complaint)
        raise RunFailed(driver.complaint)
    return state


def _trials_of(
    study: Study, question: Question, maker: RequestMaker, say: Callable[[str], None]
) -> Trials:
    if study.leases is None:
        return Trials(question, study, maker)
    return SharedTrials(question, study, maker, study.leases, say)


def _teller(directory: SweepDirectory, display: SweepDisplay) -> Callable[[str], None]:
    def say(text: str) -> None:
        directory.append_log(text)
        display.say(text)

    return say
