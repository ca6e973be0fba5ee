"""What Optuna is told of a cell: means over seeds, worst values for results that are none, failures."""

import math

import pytest

from harness.question.load import load_question
from harness.question.question import Question
from harness.records.record import Estimate, Record, RunStatus
from harness.study.study import TrialStatus
from harness.sweeping.outcome import outcome_of


def record(
    status: RunStatus = RunStatus.completed, loss: float = 1.0, metrics: dict | None = None
) -> Record:
    found = Record(run_id=f"run-{loss}", status=status, config={}, metrics=metrics or {})
    if status is RunStatus.completed:
        found.evals["after"] = {"eval/loss": Estimate(value=loss, standard_error=None, n=8)}
    return found


@pytest.fixture
def question(ask) -> Question:
    return load_question(
        str(
            ask(
                objective={"eval/loss": "minimize", "memory/peak_bytes": "minimize"},
                constraints={"memory/peak_bytes": {"at_most": "1KiB"}},
                search={"method": "nsga2", "trials": 3, "seeds": [0, 1]},
            )
        ),
        [],
    )


def probe(peak: float = 1000.0) -> Record:
    return record(metrics={"memory/peak_bytes": peak})


def test_a_value_is_the_mean_over_seeds_and_a_cost_is_the_probes(question):
    runs = [record(metrics={"memory/peak_bytes": 5e9}), record(loss=2.0)]
    outcome = outcome_of(question, runs, probe(1000.0))
    assert outcome.status is TrialStatus.completed
    assert outcome.values == (1.5, 1000.0)
    assert outcome.violations == (1000.0 - 1024.0,)


def test_a_limit_that_is_broken_is_a_positive_violation(question):
    outcome = outcome_of(question, [record(), record()], probe(2048.0))
    assert outcome.violations == (1024.0,)


@pytest.mark.parametrize("status", [RunStatus.diverged, RunStatus.out_of_memory])
def test_divergence_and_out_of_memory_are_the_worst_there_is(question, status):
    outcome = outcome_of(question, [record(), record(status)], probe())
    assert outcome.status is TrialStatus.completed
    assert outcome.values == (math.inf, math.inf)
    assert outcome.violations == (math.inf,)
    assert outcome.reason == status.value


def test_a_loss_that_is_no_number_is_the_worst_there_is(question):
    outcome = outcome_of(question, [record(loss=math.nan), record()], probe())
    assert outcome.values == (math.inf, 1000.0)


def test_a_failed_run_says_nothing_about_its_cell(question):
    bad = record(RunStatus.failed)
    bad.error = "worker died"
    outcome = outcome_of(question, [record(), bad], probe())
    assert outcome.status is TrialStatus.failed
    assert "worker died" in (outcome.reason or "")


def test_what_was_not_measured_is_a_failure_that_names_the_metric(question):
    outcome = outcome_of(question, [record(), record()], record())
    assert outcome.status is TrialStatus.failed
    assert "memory/peak_bytes" in (outcome.reason or "")


def test_a_pruned_seed_prunes_the_cell(question):
    assert outcome_of(question, [record(RunStatus.pruned)], probe()).status is TrialStatus.pruned
