"""The tests' own PostgreSQL server takes a study, and each test has a database of its own."""

import optuna
import pytest

from harness.study.database import open_database


@pytest.mark.parametrize("turn", [1, 2])
def test_a_study_begins_in_an_empty_database_of_its_own(postgres_database, turn):
    storage = open_database(postgres_database)
    assert storage.get_all_studies() == []
    study = optuna.create_study(storage=storage, study_name="same name each turn")
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    again = optuna.load_study(
        storage=open_database(postgres_database), study_name="same name each turn"
    )
    assert [trial.value for trial in again.trials] == [0.5]
