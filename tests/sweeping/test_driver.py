"""What the driver asks for and gives out, to workers that only take note."""

from typing import Any, cast

import pytest

from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.sweeping.assignment import WorkerView
from harness.sweeping.driver import Driver
from harness.sweeping.member import open_study
from harness.sweeping.messages import Order
from harness.sweeping.pool import Pool
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory
from harness.sweeping.tenancy import Alone
from harness.sweeping.trials import Trials
from harness.training.stop import StopRequest


class Listener:
    """A worker that is ready and keeps what it is sent."""

    ready = True
    busy = False

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        self.orders.append(order)


@pytest.fixture
def given(ask, tmp_path):
    """Return how many runs each of some workers is given at first, with room for so many each."""

    def give(workers: int, slots: int, **parts: Any) -> list[int]:
        space = {"optim.lr": "tag(log, interval(1e-4, 1e-2))"}
        question = load_question(str(ask(space=space, **parts)), [])
        directory = SweepDirectory(tmp_path / "out", question.name)
        directory.path.mkdir(parents=True)
        study = open_study(question, check_space(question), directory, None)
        trials = Trials(question, study, RequestMaker(question), Alone())
        driver = Driver(trials, Pool(directory.workers, 60.0), StopRequest())
        listeners = [Listener() for _ in range(workers)]
        driver.views = [WorkerView(worker=cast(Any, each), slots=slots) for each in listeners]
        for _ in range(10 * workers * slots):  # it asks for so long at a time
            driver._assign()
        study.close()
        return [len(each.orders) for each in listeners]

    return give


def tpe(trials: int) -> dict[str, Any]:
    return {"method": "tpe", "trials": trials}


def test_a_search_that_learns_asks_for_a_fifth_of_its_trials_at_once(given):
    assert given(4, 16, search=tpe(60)) == [3, 3, 3, 3]


def test_a_short_search_still_fills_one_workers_slots(given):
    assert given(2, 16, search=tpe(12)) == [4, 4]


def test_no_worker_is_idle_for_the_sake_of_a_search(given):
    assert given(12, 2, search=tpe(12)) == [1] * 12


def test_trials_in_flight_are_as_many_as_the_question_says(given):
    assert given(2, 16, search=tpe(40) | {"in_flight": 6}) == [3, 3]
    assert given(4, 16, search=tpe(40) | {"in_flight": 3}, name="fewer") == [1, 1, 1, 0]
    more = {"search": tpe(40) | {"in_flight": 20}, "resources": {"cohort": 16}}
    assert given(2, 16, name="more", **more) == [10, 10]


def test_a_cohort_that_is_asked_for_is_filled(given):
    assert given(2, 6, search=tpe(16), resources={"cohort": 6}) == [6, 6]


def test_a_search_that_learns_nothing_asks_for_all_that_there_is_room_for(given):
    assert given(2, 6, search={"method": "random", "trials": 16}) == [7, 7]
