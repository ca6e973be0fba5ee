"""`harness sweep` and `harness status` end to end, with real worker processes."""

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.cli.main import dispatch
from harness.records.record import MeasuredIn, Record, RunStatus, read_records
from harness.sweeping import pool
from harness.sweeping.driver import MOST_IN_A_ROW
from harness.sweeping.state import SweepDirectory, SweepState, SweepStatus, read_state
from tests.sweeping import faulty_worker
from tests.sweeping.conftest import STEPS


def state_of(file: Path) -> SweepState:
    return read_state(SweepDirectory(file.parent / "out", file.stem))


def records_of(file: Path) -> list[Record]:
    records, problems = read_records(file.parent / "out")
    assert not problems
    return records


def role(record: Record) -> str:
    return record.provenance["sweep"]["role"]


def test_a_grid_trains_each_cell_and_seed_once_and_confirms_the_best(ask, capsys):
    file = ask(
        space={
            "lora.rank": "choice(1,2,4)",
            "quant.format": "choice(none,nf4)",
            "quant.double_quant": {
                "values": "choice(false,true)",
                "when": {"quant.format": "nf4"},
            },
        },
        base=("quant=nf4",),
        search={"method": "grid", "seeds": [0, 1]},
        confirm={"top": 2, "seeds": [7, 8, 9], "split": "test"},
    )
    assert dispatch(["sweep", str(file)]) == 0

    records = records_of(file)
    searched = [record for record in records if role(record) == "search"]
    cells = Counter(
        (
            record.config["lora"]["rank"],
            record.config["quant"]["format"],
            record.config["quant"]["double_quant"],
            record.config["seed"],
        )
        for record in searched
    )
    expected = {
        (rank, quant, double, seed)
        for rank in (1, 2, 4)
        for quant, double in (("none", False), ("nf4", False), ("nf4", True))
        for seed in (0, 1)
    }
    assert cells == Counter(expected)
    assert {record.status for record in records} == {RunStatus.completed}

    state = state_of(file)
    assert state.status is SweepStatus.finished
    assert [trial.status for trial in state.trials] == ["completed"] * 9
    confirmed = [record for record in records if role(record) == "confirmation"]
    assert len(confirmed) == 6
    assert {record.config["seed"] for record in confirmed} == {7, 8, 9}
    assert {record.config["eval"]["split"] for record in confirmed} == {"test"}
    values = [trial.values for trial in state.trials if trial.values]
    best = [line.trial for line in state.confirmed]
    assert best == sorted(range(9), key=lambda number: values[number])[:2]
    shown = capsys.readouterr().out
    assert "Does it work?" in shown
    assert "Confirmation" in shown

    written = {record.run_id: record.started_at for record in records}
    assert dispatch(["sweep", str(file)]) == 0
    assert {record.run_id: record.started_at for record in records_of(file)} == written


def test_a_search_trains_no_cell_twice_and_has_as_many_trials_as_asked_for(ask):
    file = ask(
        base=("optim.steps=2",),
        space={"lora.rank": "choice(1,2,3)", "optim.lr": "choice(1e-3,1e-2)"},
        search={"method": "tpe", "trials": 14},
    )
    assert dispatch(["sweep", str(file)]) == 0
    state = state_of(file)
    assert [trial.number for trial in state.trials] == list(range(14))
    assert {trial.status for trial in state.trials} == {"completed"}
    by_point = {}
    for trial in state.trials:
        assert by_point.setdefault(str(trial.point), trial.values) == trial.values
    assert len(records_of(file)) == len(by_point) <= 6

    assert dispatch(["sweep", str(file), "search.trials=16"]) == 0
    assert len(state_of(file).trials) == 16


def test_a_pruned_run_costs_fewer_steps_and_its_other_seeds_are_not_trained(ask):
    file = ask(
        base=("eval.every_steps=1", "optim.steps=30"),
        space={"optim.lr": "choice(1e-2,1e-8,2e-8)"},
        search={"method": "grid", "pruner": "asha", "seeds": [0, 1]},
        resources={"cohort": 1},
    )
    assert dispatch(["sweep", str(file)]) == 0
    state = state_of(file)
    counts = Counter(trial.status for trial in state.trials)
    assert counts["pruned"] >= 1
    records = {record.run_id: record for record in records_of(file)}
    for trial in state.trials:
        left = [records[run] for run in trial.runs if run in records]
        if trial.status == "pruned":
            (only,) = left
            assert only.status is RunStatus.pruned
            assert only.config["seed"] == 0
            log = (file.parent / "out" / "runs" / only.run_id / "metrics.jsonl").read_text()
            assert len(log.splitlines()) < 30
        else:
            assert [record.status for record in left] == [RunStatus.completed] * 2


def test_memory_as_an_objective_is_measured_by_a_run_alone(ask):
    file = ask(
        space={"lora.rank": "choice(1,8)", "optim.lr": "choice(1e-3,1e-2)"},
        search={"method": "nsga2", "trials": 4},
        objective={"eval/loss": "minimize", "memory/peak_bytes": "minimize"},
        constraints={"memory/peak_bytes": {"at_most": "1GiB"}},
    )
    assert dispatch(["sweep", str(file)]) == 0
    state, records = state_of(file), records_of(file)
    probes = [record for record in records if record.measured_in is MeasuredIn.probe]
    ranks = {trial.point["lora.rank"] for trial in state.trials}
    assert len(probes) == len(ranks)  # learning rates cost the same
    peaks = {str(p.config["lora"]["rank"]): p.metrics["memory/peak_bytes"] for p in probes}
    for trial in state.trials:
        assert trial.values is not None
        assert trial.values[1] == peaks[trial.point["lora.rank"]]
        assert trial.feasible
    if len(peaks) == 2:
        assert (peaks["1"] or 0) < (peaks["8"] or 0)


def test_whatever_goes_wrong_in_a_worker_gets_its_status_and_the_sweep_finishes(
    ask, monkeypatch, capsys
):
    monkeypatch.setattr(pool, "WORKER", faulty_worker.__name__)
    file = ask(
        space={"lora.rank": "choice(1,2,3,4,5,6,7)"}, resources={"hang_seconds": 6.0, "cohort": 8}
    )
    assert dispatch(["sweep", str(file)]) == 1
    found = {record.config["lora"]["rank"]: record for record in records_of(file)}
    assert {rank: record.status for rank, record in found.items()} == {
        faulty_worker.RAISES: RunStatus.failed,
        faulty_worker.OUT_OF_MEMORY: RunStatus.out_of_memory,
        faulty_worker.NOT_A_NUMBER: RunStatus.diverged,
        faulty_worker.HANGS: RunStatus.failed,
        faulty_worker.DIES: RunStatus.failed,
        faulty_worker.BEHAVES: RunStatus.completed,
        faulty_worker.BEHAVES + 1: RunStatus.completed,
    }
    assert "made to raise" in (found[1].error or "")
    assert "no sign of life" in (found[4].error or "")
    assert "signal 9" in (found[5].error or "")
    capsys.readouterr()
    assert dispatch(["status", file.stem, f"paths.out={file.parent / 'out'}"]) == 0
    shown = capsys.readouterr().out
    for record in found.values():
        if record.status is not RunStatus.completed:
            assert f"{record.run_id}: {record.status.value}" in shown


def test_a_sweep_in_which_every_run_fails_stops_and_goes_on_once_that_is_mended(
    ask, capsys, monkeypatch
):
    rates = ",".join(str(1e-4 * number) for number in range(1, 15))
    file = ask(
        space={"optim.lr": f"choice({rates})"},
        base=(f"lora.rank={faulty_worker.RAISES}",),
        resources={"cohort": 2},
    )
    with monkeypatch.context() as broken:
        broken.setattr(pool, "WORKER", faulty_worker.__name__)
        assert dispatch(["sweep", str(file)]) == 1
    said = capsys.readouterr().err
    assert "runs have failed one after another" in said
    assert "made to raise" in said
    failed = [record for record in records_of(file) if record.status is RunStatus.failed]
    assert MOST_IN_A_ROW <= len(failed) <= MOST_IN_A_ROW + 3  # those in flight, and one ahead
    assert state_of(file).status is SweepStatus.interrupted
    assert dispatch(["status", file.stem, f"paths.out={file.parent / 'out'}"]) == 0
    assert "runs have failed one after another" in capsys.readouterr().out

    assert dispatch(["sweep", str(file)]) == 1  # it ends, with runs that have failed
    found = Counter(record.status for record in records_of(file))
    assert found == {RunStatus.failed: len(failed), RunStatus.completed: 14 - len(failed)}
    assert state_of(file).status is SweepStatus.finished

    assert dispatch(["sweep", str(file), "name=again"]) == 0
    sweeps = Counter(record.provenance["sweep"]["name"] for record in records_of(file))
    assert sweeps == {"again": len(failed), "small": 14 - len(failed)}


def test_a_finished_sweep_is_not_mixed_with_another_question_of_its_name(ask, capsys):
    file = ask(space={"lora.rank": "choice(1)"}, base=("optim.steps=1",))
    assert dispatch(["sweep", str(file)]) == 0
    assert dispatch(["sweep", str(file), "lora.rank=choice(2)"]) == 2
    assert "asked with space lora.rank: choice(1), and now with" in capsys.readouterr().err
    assert dispatch(["sweep", str(file), "lora.rank=choice(1,2)", "name=more"]) == 0
    assert len(records_of(file)) == 2  # the first one's run was not trained again


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lora.rnk=choice(1,2)", "near names: lora.rank"),
        ("lora.rank=choice(1,4096)", "lora.rank=4096"),
        ("search.method=gird", "grid"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(ask, capsys, override, told):
    file = ask()
    assert dispatch(["sweep", str(file), override]) == 2
    assert told in capsys.readouterr().err
    assert not records_of(file)
    assert dispatch(["sweep", str(file), "--dry-run"]) == 0
    assert not records_of(file)


def test_the_plan_names_axes_trials_and_runs(ask, capsys):
    file = ask(search={"seeds": [0, 1, 2]}, confirm={"top": 1, "seeds": [9]})
    assert dispatch(["sweep", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "grid of 2 cells" in shown
    assert "runs: 6" in shown
    assert "the best 1 of all, on seeds 9, test split" in shown


def test_state_as_json_is_one_document(ask, capsys):
    file = ask(base=("optim.steps=1",))
    assert dispatch(["sweep", str(file), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["status"] == "finished"
    assert len(tree["trials"]) == 2
    assert tree["runs"][0]["total_steps"] == 1


def test_two_workers_share_a_sweep(ask):
    file = ask(space={"lora.rank": "choice(1,2,3,4,5,6)"}, resources={"devices": "cpu:2"})
    assert dispatch(["sweep", str(file)]) == 0
    assert {line.name for line in state_of(file).devices} == {"cpu:0", "cpu:1"}
    assert len(records_of(file)) == 6
    for record in records_of(file):
        log = file.parent / "out" / "runs" / record.run_id / "metrics.jsonl"
        assert len(log.read_text().splitlines()) == STEPS
