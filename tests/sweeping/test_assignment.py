"""Which worker gets which run: everybody an even share, whatever order they come in."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import pytest

from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.sweeping.assignment import Assignment, WorkerView
from harness.sweeping.ledger import Ledger, RunState
from harness.sweeping.messages import Role
from harness.sweeping.pool import WorkerProcess
from harness.sweeping.requests import RequestMaker


@pytest.fixture
def waiting(ask) -> Callable[[int, str], Ledger]:
    """Make a ledger in which so many runs of each of these formats wait."""

    def make(runs: int, formats: str = "nf4") -> Ledger:
        rates = ",".join(str(1e-4 * number) for number in range(1, runs + 1))
        space = {"quant": f"choice({formats})", "optim.lr": f"choice({rates})"}
        question = load_question(str(ask(space=space)), [])
        maker, ledger = RequestMaker(question), Ledger("small")
        for point, _ in check_space(question):
            ledger.add(maker.request(point, [], Role.search), Role.search, trial=None)
        return ledger

    return make


def views(count: int, slots: int) -> list[WorkerView]:
    """Make views that have room for `slots` runs; nobody works at them."""
    nobody = cast(WorkerProcess, None)
    return [WorkerView(worker=nobody, slots=slots) for _ in range(count)]


def deal(
    ledger: Ledger,
    all_views: Sequence[WorkerView],
    to: Iterable[WorkerView] | None = None,
    *,
    ahead: bool,
) -> list[int]:
    """Give runs, to who has the fewest first, until nobody takes one; returns how many each has."""
    assignment = Assignment(ledger, all_views, ahead=ahead)
    taking = list(all_views if to is None else to)
    while taking:
        view = min(taking, key=lambda each: len(each.runs))
        run = assignment.next_for(view)
        if run is None:
            taking.remove(view)
        else:
            assignment.take(view, run)
            view.runs[run.run_id], run.state = run, RunState.assigned
    return [len(view.runs) for view in all_views]


def end_one(view: WorkerView) -> None:
    _, run = view.runs.popitem()
    run.state = RunState.ended


@pytest.mark.parametrize("ahead", [True, False])
def test_workers_on_one_cohort_share_it_evenly(waiting, ahead):
    assert deal(waiting(16), views(2, slots=16), ahead=ahead) == [8, 8]
    assert deal(waiting(7), views(3, slots=16), ahead=ahead) == [3, 2, 2]


def test_a_worker_that_comes_first_leaves_the_others_their_share(waiting):
    ledger, both = waiting(9), views(2, slots=16)
    assert deal(ledger, both, to=both[:1], ahead=True) == [5, 0]
    assert deal(ledger, both, ahead=True) == [5, 4]


def test_what_is_left_of_a_share_goes_to_who_has_ended_its_own(waiting):
    ledger, both = waiting(16), views(2, slots=4)
    deal(ledger, both, ahead=False)
    for _ in range(3):
        end_one(both[0])
    assert deal(ledger, both, ahead=False) == [4, 4]


def test_a_cohort_stays_with_one_worker_while_another_has_its_own(waiting):
    ledger, both = waiting(4, "nf4,int4"), views(2, slots=16)
    assert deal(ledger, both, ahead=True) == [4, 4]
    formats = [{run.request.config.quant.format for run in view.runs.values()} for view in both]
    assert [len(each) for each in formats] == [1, 1]
    assert formats[0] != formats[1]


def test_a_run_waits_at_a_busy_worker_only_while_many_wait(waiting):
    ledger, both = waiting(12), views(2, slots=4)
    assert deal(ledger, both, ahead=True) == [5, 5]  # the last two wait for whoever is free first
    end_one(both[0])
    assert deal(ledger, both, ahead=True) == [4, 5]
    end_one(both[0])
    assert deal(ledger, both, ahead=True) == [4, 5]


def test_no_run_waits_at_a_busy_worker_where_results_decide_what_is_next(waiting):
    assert deal(waiting(12), views(2, slots=4), ahead=False) == [4, 4]


def test_every_run_is_given_once(waiting):
    ledger, all_views = waiting(5, "nf4,int4,fp4"), views(4, slots=2)
    given: Counter[str] = Counter()
    while any(deal(ledger, all_views, ahead=True)):
        for view in all_views:
            given.update(list(view.runs))
            for _ in range(len(view.runs)):
                end_one(view)
    assert len(given) == 15
    assert set(given.values()) == {1}
