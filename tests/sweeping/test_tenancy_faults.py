"""What can go wrong between members: each time the sweep ends with every trial told once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from sqlalchemy.exc import DBAPIError

from harness.errors import RequestError
from harness.question.load import load_question, question_of
from harness.question.question import Question, comparable
from harness.study import leases as leases_module
from harness.study.database import open_database, open_engine, question_in
from harness.study.leases import Leases
from harness.study.study import Study, TrialStatus
from harness.sweeping.ledger import RunState
from tests.sweeping.joined import age

ONE_CELL = {"space": {"lora.rank": "choice(1)"}}


def statuses(member) -> list[TrialStatus]:
    member.study.refresh()
    return [trial.status for trial in member.study.trials]


def test_a_study_that_was_deleted_leaves_no_leases_to_the_next_of_its_name(
    members, postgres_database
):
    one = members("one")
    one.ask()
    for _ in range(3):
        one.end(one.claim(), loss=1.0)
    optuna.delete_study(study_name="shared", storage=postgres_database)
    two = members("two")
    two.ask()
    for _ in range(3):
        two.end(two.claim(), loss=1.0)
    assert len(two.told()) == 3


@pytest.mark.parametrize("lost", ["tiny", "sums.jsonl"])
def test_a_machine_without_the_model_or_the_data_says_so_and_fails_no_trial(members, world, lost):
    one, two = members("one"), members("two")
    one.ask()
    run = one.claim()
    (world / lost).rename(world / "gone")
    try:
        with pytest.raises(RequestError):
            two.look()
    finally:
        (world / "gone").rename(world / lost)
    one.end(run, loss=1.0)
    assert sorted(statuses(one), key=str) == [TrialStatus.completed, *[TrialStatus.running] * 2]


def test_members_for_whom_a_point_is_another_run_are_refused(members, world):
    one = members("one")
    one.ask()
    file = world / "sums.jsonl"
    rows = file.read_text()
    file.write_text(rows.replace("How much", "How many"))
    try:
        with pytest.raises(RequestError, match="model, data or the harness's version differ"):
            members("two").trials.resume()
    finally:
        file.write_text(rows)


def test_a_member_that_freezes_in_a_transaction_holds_the_others_up_for_seconds(
    members, postgres_database
):
    one, two = members("one"), members("two")
    one.ask()
    one.claim()
    age(postgres_database, "one", 3)
    went_on = threading.Event()

    def look() -> None:
        two.tenancy._leases.free_what_is_over()
        went_on.set()

    with pytest.raises(DBAPIError):  # it had its row locked, and nothing was said for ten seconds
        _hold(one, "trial 0", went_on, threading.Thread(target=look, daemon=True))
    assert went_on.is_set()


def _hold(member, item: str, until: threading.Event, other: threading.Thread) -> None:
    with member.tenancy._leases.ending(item):
        other.start()
        until.wait(30)


def test_who_has_lost_its_turn_writes_no_trial(members, monkeypatch):
    one, two = members("one"), members("two")
    given = one.study._given_values
    monkeypatch.setattr(leases_module, "TURN_SECONDS", 1.0)

    def slowly(number: int):
        monkeypatch.setattr(leases_module, "TURN_SECONDS", 60.0)  # of the other one's turns
        time.sleep(2.5)
        two.ask()
        return given(number)

    one.study._given_values = slowly
    with pytest.raises(DBAPIError):
        one.trials.ask()
    assert len(statuses(two)) == 3


def test_a_cell_that_another_has_is_joined_and_both_trials_are_told(members):
    search = {"method": "random", "trials": 2}
    one, two = members("one", search=search, **ONE_CELL), members("two", search=search, **ONE_CELL)
    one.trials.ask()
    run = one.claim()
    two.trials.ask()
    assert [two.trials.claim(each) for each in two.waiting()] == [False]
    one.end(run, loss=1.0)  # knows of its own trial only
    two.look()
    assert two.told() == {0: 1.0, 1: 1.0}
    assert not two.waiting()


def test_a_run_that_waits_again_after_others_have_told_it_is_not_claimed(
    members, postgres_database
):
    one, two = members("one"), members("two")
    one.ask()
    lost = one.claim()
    age(postgres_database, "one", 3)
    two.look()
    run = next(each for each in two.waiting() if each.run_id == lost.run_id)
    assert two.trials.claim(run)
    two.end(run, loss=1.0)
    one.look()
    lost.state = RunState.waiting  # as when its worker has died
    assert not one.trials.claim(lost)


def test_a_cell_that_failed_elsewhere_is_trained_when_it_is_asked_for_again(members):
    search = {"method": "random", "trials": 2}
    one, two = members("one", search=search, **ONE_CELL), members("two", search=search, **ONE_CELL)
    one.trials.ask()
    run = one.claim()
    two.look()
    one.fail(run)
    two.look()
    two.trials.ask()
    two.end(two.claim(), loss=1.0)
    assert statuses(two) == [TrialStatus.failed, TrialStatus.completed]


def test_a_confirmation_that_failed_is_tried_by_another_member(members):
    confirm = {"top": 1, "seeds": [5]}
    one = members("one", confirm=confirm, **ONE_CELL)
    one.ask()
    one.end(one.claim(), loss=1.0)
    assert not one.trials.is_done()
    one.fail(one.claim())
    two = members("two", confirm=confirm, **ONE_CELL)
    two.look()
    assert not two.trials.is_done()
    two.look()
    two.end(two.claim(), loss=1.0)
    assert two.trials.is_done()


def test_tables_are_made_once_however_many_begin_at_the_same_moment(postgres_database):
    def begin(index: int) -> None:
        open_database(postgres_database).engine.dispose()
        Leases(open_engine(postgres_database), f"sweep{index}", 10.0).join()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))


def test_a_member_changes_neither_the_question_nor_what_others_get_of_its_own(
    ask, postgres_database
):
    storage = f"study.storage={postgres_database}"
    file = str(ask("shared", search={"method": "random", "trials": 2}))

    def join(question: Question, *, asks: bool) -> None:
        leases = Leases(open_engine(postgres_database), question.name, 10.0)
        Study.open(
            question,
            postgres_database,
            eval_every_steps=None,
            total_steps=8,
            leases=leases,
            asks=asks,
        ).close()

    def asked() -> dict:
        return question_in(open_database(postgres_database), "shared")

    first = load_question(file, [storage])
    join(first, asks=True)
    own = ["paths.out=/scratch/node7", "resources.devices=[0]", "checkpoint.every_steps=7"]
    member = question_of(asked(), "shared", own)
    join(load_question(file, [storage, "search.trials=40"]), asks=True)
    join(member, asks=False)  # it has joined before there were forty
    assert asked()["search"]["trials"] == 40
    assert asked()["resources"]["devices"] == "cpu"
    assert not any("scratch" in override for override in asked()["base"])
    assert comparable(member) == comparable(first)
