"""Trials that ask for what is known."""

import pytest

from harness.question.check_space import check_space
from harness.question.load import load_question
from harness.records.record import Estimate, Record, RunStatus
from harness.study.study import TrialStatus
from harness.sweeping.member import open_study
from harness.sweeping.requests import RequestMaker
from harness.sweeping.state import SweepDirectory
from harness.sweeping.tenancy import Alone
from harness.sweeping.trials import Trials
from tests.sweeping.conftest import STEPS


@pytest.mark.parametrize("status", [RunStatus.completed, RunStatus.pruned])
def test_a_known_result_is_told_again_but_not_what_was_reported_on_the_way(ask, tmp_path, status):
    search = {"method": "random", "trials": 2, "pruner": "asha"}
    file = ask(space={"lora.rank": "choice(1)"}, base=("eval.every_steps=2",), search=search)
    question = load_question(str(file), [])
    directory = SweepDirectory(tmp_path / "out", question.name)
    directory.path.mkdir(parents=True)
    study = open_study(question, check_space(question), directory, None)
    trials = Trials(question, study, RequestMaker(question), Alone())

    trials.ask()
    (run,) = trials.ledger.runs.values()
    assert trials.evaluated(run, 2, STEPS, {"eval/loss": 0.75}) is None
    record = Record(run_id=run.run_id, status=status, config={})
    record.evals["after"] = {"eval/loss": Estimate(value=0.5, standard_error=None, n=8)}
    trials.ended(run, record)
    trials.ask()

    first, second = study.trials
    assert second.status is first.status is TrialStatus(status.value)
    assert second.values == first.values
    assert (first.reports, second.reports) == ({2: 0.75}, {})
    study.close()
