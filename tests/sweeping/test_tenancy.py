"""Two members in one process on a real PostgreSQL: who may claim, who may tell, what a late one hears."""

from harness.config.compose import config_tree
from harness.records.record import Estimate, Record, RunStatus, write_record
from harness.study.leases import LEASE_HEARTBEATS
from harness.study.study import TrialStatus
from harness.sweeping.ledger import RunState
from harness.sweeping.messages import Role
from harness.sweeping.tenancy import LOOKS
from tests.sweeping.joined import age


def test_the_budget_is_one_and_what_one_claims_the_other_does_not_get(members):
    one, two = members("one"), members("two")
    one.ask()
    two.ask()
    assert [trial.number for trial in two.study.trials] == [0, 1, 2]
    two.look()
    mine = one.claim()
    assert not two.trials.claim(two.trials.ledger.runs[mine.run_id])
    assert two.trials.ledger.runs[mine.run_id].state is RunState.elsewhere
    assert mine.run_id not in {two.claim().run_id, two.claim().run_id}
    assert not two.waiting()


def test_a_lease_is_over_after_one_and_a_half_heartbeats_and_its_trial_waits_before_two(
    members, postgres_database
):
    one, two = members("one"), members("two")
    one.ask()
    lost = one.claim()
    two.look()
    age(postgres_database, "one", LEASE_HEARTBEATS - 0.2)
    two.look()
    assert two.trials.ledger.runs[lost.run_id].state is RunState.elsewhere
    age(postgres_database, "one", LEASE_HEARTBEATS + 0.01)
    two.look()  # the latest look at that moment is 1 / LOOKS heartbeats after the lease is over
    assert LEASE_HEARTBEATS + 1 / LOOKS < 2
    assert two.trials.ledger.runs[lost.run_id].state is RunState.waiting
    assert two.said == ["one gives no sign of life: trial 0 waits for another member"]


def test_what_a_late_member_tells_is_refused_and_said(members, postgres_database):
    one, two = members("one"), members("two")
    one.ask()
    late = one.claim()
    age(postgres_database, "one", 3)
    two.look()
    run = next(run for run in two.waiting() if run.run_id == late.run_id)
    assert two.trials.claim(run)
    one.end(late, loss=9.0)  # before it has noticed anything
    assert one.told() == {}
    assert one.said == ["the late result of trial 0 (completed) is refused"]
    two.end(run, loss=1.0)
    assert one.told() == {0: 1.0}


def test_one_that_notices_first_is_refused_as_well_and_one_that_nobody_followed_is_not(
    members, postgres_database
):
    one, two = members("one"), members("two")
    one.ask()
    late, unwanted = one.claim(), one.claim()
    age(postgres_database, "one", 3)
    two.look()
    run = next(run for run in two.waiting() if run.run_id == late.run_id)
    assert two.trials.claim(run)
    two.end(run, loss=1.0)
    one.look()
    assert one.said[:2] == [
        "the lease on trial 0 ran out before it was renewed",
        "the lease on trial 1 ran out before it was renewed",
    ]
    one.end(late, loss=9.0)
    assert one.said[2:] == ["the late result of trial 0 (completed) is refused"]
    one.end(unwanted, loss=2.0)  # still free: the work is not lost
    assert two.told() == {0: 1.0, 1: 2.0}


def test_a_trial_whose_runs_are_all_on_disk_is_told_by_whoever_finds_it(members, postgres_database):
    one, two = members("one"), members("two")
    one.ask()
    run = one.claim()
    record = Record(
        run_id=run.run_id, status=RunStatus.completed, config=config_tree(run.request.config)
    )
    record.evals["after"] = {"eval/loss": Estimate(value=0.5, standard_error=0.1, n=8)}
    run.request.directory.path.mkdir(parents=True)
    write_record(run.request.directory.record, record)  # and here it dies
    age(postgres_database, "one", 3)
    two.look()
    two.look()
    assert two.told() == {0: 0.5}


def test_a_cell_that_two_ask_for_is_trained_once(members):
    search = {"method": "random", "trials": 6}
    space = {"lora.rank": "choice(1,2)"}
    one, two = (
        members("one", search=search, space=space),
        members("two", search=search, space=space),
    )
    one.ask()
    two.look()
    first, second = one.claim(), two.claim()
    assert first.run_id != second.run_id
    one.end(first, loss=1.0)
    two.end(second, loss=2.0)
    for each in (one, two, one):
        each.look()
    assert len(one.told()) == len(two.told()) == 6
    assert {t.status for t in two.study.trials} == {TrialStatus.completed}


def test_confirmation_runs_are_claimed_one_by_one(members):
    confirm = {"top": 1, "seeds": [5, 6]}
    space = {"lora.rank": "choice(1)"}
    one, two = (
        members("one", confirm=confirm, space=space),
        members("two", confirm=confirm, space=space),
    )
    one.ask()
    one.end(one.claim(), loss=1.0)
    two.look()
    assert not one.trials.is_done()
    assert not two.trials.is_done()
    mine, other = one.claim(), two.claim()
    assert {mine.role, other.role} == {Role.confirmation}
    assert mine.run_id != other.run_id
    one.end(mine, loss=1.0, on_disk=True)
    two.end(other, loss=2.0, on_disk=True)
    for each in (one, two):
        each.look()
        assert each.trials.is_done()


def test_who_leaves_gives_back_at_once(members):
    one, two = members("one"), members("two")
    one.ask()
    run = one.claim()
    two.look()
    assert two.trials.ledger.runs[run.run_id].state is RunState.elsewhere
    one.tenancy.leave()
    two.look()
    assert two.trials.ledger.runs[run.run_id].state is RunState.waiting
    assert two.said == []


def test_the_probes_of_the_end_are_shared_out_and_each_is_run_once(members):
    search = {"probe": True}
    one, two = members("one", search=search), members("two", search=search)
    one.ask()
    for _ in range(3):
        one.end(one.claim(), loss=1.0)
    for member in (one, two):
        member.look()
        assert not member.trials.is_done()  # the trials are told, and begin the probes
    assert [run.role for run in two.waiting()] == [Role.probe] * 3
    mine = one.claim()
    two.look()
    theirs = [two.claim(), two.claim()]
    assert mine.run_id not in {run.run_id for run in theirs}
    assert not two.waiting()
    one.end(mine, loss=1.0)
    two.look()
    assert two.trials.ledger.runs[mine.run_id].state is RunState.ended
    for run in theirs:
        two.end(run, loss=1.0)
    one.look()
    assert one.trials.is_done()
    assert two.trials.is_done()
