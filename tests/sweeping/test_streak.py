"""When failures in a row end a sweep: only where no other kind of run is left to show that some work."""

import pytest

from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.records.record import Record, RunStatus
from harness.sweeping.driver import MOST_IN_A_ROW, MOST_OF_SOME_KINDS, FailureStreak
from harness.sweeping.ledger import Ledger, RunState
from harness.sweeping.messages import Role
from harness.sweeping.requests import RequestMaker


@pytest.fixture
def ledger(ask) -> Ledger:
    """A ledger in which a few runs more of each of two formats wait than may fail in a row."""
    rates = ",".join(str(1e-4 * number) for number in range(1, MOST_IN_A_ROW + 3))
    space = {"quant": "choice(nf4,int4)", "optim.lr": f"choice({rates})"}
    question = load_question(str(ask(space=space)), [])
    maker, ledger = RequestMaker(question), Ledger("small")
    for point, _ in check_space(question):
        ledger.add(maker.request(point, [], Role.search), Role.search, trial=None)
    return ledger


def end(
    ledger: Ledger, streak: FailureStreak, word: str, status: RunStatus, most: int = 100
) -> None:
    """End so many of the runs of a format that have not ended."""
    waiting = [r for r in ledger.runs.values() if r.state is RunState.waiting]
    for run in [r for r in waiting if r.request.config.quant.format.value.startswith(word)][:most]:
        record = Record(
            run_id=run.run_id, status=status, config={}, error="no space left on device"
        )
        streak.add(run, record)
        run.end(record)


def test_failures_of_every_kind_that_is_left_end_it(ledger):
    streak = FailureStreak(ledger, adaptive=False)
    end(ledger, streak, "nf4", RunStatus.failed, MOST_IN_A_ROW - 1)
    assert streak.complaint is None
    end(ledger, streak, "int4", RunStatus.failed, 1)
    assert streak.complaint is not None
    assert "no space left on device" in streak.complaint
    assert "the same command goes on" in streak.complaint


def test_one_kind_that_cannot_work_does_not(ledger):
    streak = FailureStreak(ledger, adaptive=False)
    end(ledger, streak, "nf4", RunStatus.failed)
    assert streak.complaint is None  # the other kind waits
    end(ledger, streak, "int4", RunStatus.failed, 1)
    assert streak.complaint is not None


@pytest.mark.parametrize(
    "status", [RunStatus.completed, RunStatus.diverged, RunStatus.out_of_memory, RunStatus.pruned]
)
def test_a_run_that_comes_to_an_end_of_its_own_begins_the_count_anew(ledger, status):
    streak = FailureStreak(ledger, adaptive=False)
    end(ledger, streak, "nf4", RunStatus.failed, MOST_IN_A_ROW - 1)
    end(ledger, streak, "nf4", status, 1)
    end(ledger, streak, "int4", RunStatus.failed, MOST_IN_A_ROW - 1)
    assert streak.complaint is None
    end(ledger, streak, "nf4", RunStatus.failed, 1)
    assert streak.complaint is not None


def test_a_kind_that_has_worked_may_come_again_in_a_search_that_learns(ledger):
    for adaptive in (False, True):
        for run in ledger.runs.values():
            run.state = RunState.waiting
        streak = FailureStreak(ledger, adaptive=adaptive)
        end(ledger, streak, "nf4", RunStatus.completed)
        end(ledger, streak, "int4", RunStatus.failed, MOST_IN_A_ROW)
        assert (streak.complaint is None) == adaptive


def test_a_search_that_learns_does_not_wait_for_every_kind_for_ever(ledger):
    for adaptive in (False, True):
        streak = FailureStreak(ledger, adaptive=adaptive)
        for _ in range(MOST_OF_SOME_KINDS // MOST_IN_A_ROW):
            for run in ledger.runs.values():
                run.state = RunState.waiting
            assert streak.complaint is None
            end(ledger, streak, "int4", RunStatus.failed, MOST_IN_A_ROW)
        for run in ledger.runs.values():
            run.state = RunState.waiting
        assert (streak.complaint is not None) == adaptive
