"""One driver of a sweep from its workers' start to its last state: alone on it, or a member of several."""

import sys
import time
from collections.abc import Callable, Sequence

import yaml
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from harness.config import RunConfig
from harness.errors import RequestError, RunFailed
from harness.run_directory import write_text
from harness.search.leases import Leases
from harness.search.question import Question
from harness.search.space import Point
from harness.search.storage import open_engine
from harness.search.study import Study
from harness.sweeping.check import check_without_device, refuse_what_does_not_fit
from harness.sweeping.display import SweepDisplay
from harness.sweeping.driver import Driver
from harness.sweeping.pool import Pool, devices_for
from harness.sweeping.requests import RequestMaker
from harness.sweeping.sharing import SharedTrials
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, read_state, write_state
from harness.sweeping.trials import Trials
from harness.sweeping.view import View
from harness.training.stop import StopRequest

STATE_SECONDS = 1.0
OUTAGE_SECONDS = 6 * 3600.0
"""How long a member waits for a server that does not answer."""
OUTAGES = (DBAPIError, StorageInternalError)
"""What a call raises whose database is gone."""

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
    RequestError where another driver has the sweep, or where model and data refuse a point.
    """
    leases = _leases_of(question)
    with directory.lock(shared=leases is not None):
        while True:
            try:
                return _train(question, points, directory, stop, leases, collect=collect)
            except OUTAGES as error:
                if leases is None:
                    raise
                if not _wait_for_server(question, directory, stop, error):
                    return read_state(directory)


def _train(
    question: Question,
    points: Points,
    directory: SweepDirectory,
    stop: StopRequest,
    leases: Leases | None,
    *,
    collect: bool,
) -> SweepState:
    """Start workers, and drive them until nothing is left, `stop` is asked for, or the server is gone."""
    logs = directory.workers if leases is None else directory.workers / leases.member
    pool = Pool(logs, question.resources.hang_seconds)
    try:
        for device in devices_for(question.resources.devices):
            pool.start(device)
        if not directory.question.exists():
            refuse_what_does_not_fit(points, pool)
        write_text(directory.question, question_text(question))
        study = open_study(question, points, directory, leases)
        return _drive(study, question, directory, pool, stop, collect)
    except OUTAGES:
        pool.stop()  # what is in flight keeps a checkpoint
        raise
    finally:
        pool.kill()


def _wait_for_server(
    question: Question, directory: SweepDirectory, stop: StopRequest, error: Exception
) -> bool:
    """Wait until the study's server answers again; returns False when a stop is asked for meanwhile.

    The study says everything that a member has to know, so it begins anew from there.
    """
    said = str(error.__cause__ or error).splitlines()[0]
    line = f"the study's server is gone ({said}); runs keep their checkpoints, and wait for it"
    directory.append_log(line)
    print(f"harness: {line}", file=sys.stderr)
    assert question.study.storage is not None
    give_up = time.monotonic() + OUTAGE_SECONDS
    while not stop:
        try:
            open_engine(question.study.storage).dispose()
            return True
        except RequestError as refused:
            if time.monotonic() > give_up:
                raise RunFailed(f"{refused}, for {OUTAGE_SECONDS / 3600:.0f} hours") from error
            time.sleep(2)
    return False


def begin_sweep(question: Question, points: Points, directory: SweepDirectory) -> None:
    """Create the study of a sweep that others will train, after checking its points; trains nothing.

    Raises RequestError where a driver works on it alone, or where model and data refuse a point.
    """
    with directory.lock(shared=True):
        if not directory.question.exists():
            check_without_device(points, directory)
        write_text(directory.question, question_text(question))
        study = open_study(question, points, directory, _leases_of(question))
        trials = _trials_of(study, question, directory.append_log)
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
    question: Question, points: Points, directory: SweepDirectory, leases: Leases | None
) -> Study:
    """Create or load the study of a question."""
    steps = {config.optim.steps for _, config in points}
    every = {config.eval.every_steps for _, config in points}
    return Study.open(
        question,
        question.study.storage or directory.storage,
        eval_every_steps=every.pop() if len(every) == 1 else None,
        total_steps=steps.pop() if len(steps) == 1 else None,
        leases=leases,
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
    directory: SweepDirectory,
    pool: Pool,
    stop: StopRequest,
    collect: bool,
) -> SweepState:
    with SweepDisplay() as display:
        driver = Driver(_trials_of(study, question, _teller(directory, display)), pool, stop)
        view = View(driver)
        written_at = 0.0
        try:
            for _ in driver.drive():
                state = view.state()
                display.show(state)
                if time.monotonic() - written_at >= STATE_SECONDS:
                    write_state(directory, state)
                    written_at = time.monotonic()
            if driver.is_finished and collect:
                driver.trials.collect()
            driver.trials.leave()
        finally:
            state = view.state()
            ended = SweepStatus.finished if driver.is_finished else SweepStatus.interrupted
            state.status = ended
            write_state(directory, state)
            study.close()
    return state


def _trials_of(study: Study, question: Question, say: Callable[[str], None]) -> Trials:
    maker = RequestMaker(question)
    if study.leases is None:
        return Trials(question, study, maker)
    return SharedTrials(question, study, maker, study.leases, say)


def _teller(directory: SweepDirectory, display: SweepDisplay) -> Callable[[str], None]:
    def say(text: str) -> None:
        directory.append_log(text)
        display.say(text)

    return say
