"""Members without a shared file system leave their runs in the study's artifact store."""

import pytest

from harness.errors import RequestError
from harness.question.load import load_question
from harness.records.record import read_metrics, read_records
from harness.study.study import Study
from harness.sweeping.artifacts import RunArtifacts
from tests.sweeping.test_crash import lines_of
from tests.sweeping.test_member import SECONDS, member, shared, state_of, wait_until


def test_the_sweep_has_every_run_in_the_end_though_each_member_has_a_disk_of_its_own(
    ask, tmp_path, postgres_database
):
    study = shared(postgres_database)["study"] | {"artifacts": str(tmp_path / "store")}
    file = ask(
        "apart",
        base=("optim.steps=60", "checkpoint.every_steps=20"),
        space={"lora.rank": "choice(1,2,4)", "optim.lr": "choice(1e-3,1e-2)"},
        confirm={"top": 1, "seeds": [5, 6]},
        resources={"cohort": 1},
        study=study,
    )
    here, there = tmp_path / "here", tmp_path / "there"
    first = member("sweep", str(file), here)
    wait_until(lambda: lines_of(here) > 0, first, tmp_path / "here-sweep.log")
    second = member("worker", "apart", there, f"study.storage={postgres_database}")
    assert first.wait(SECONDS) == 0, (tmp_path / "here-sweep.log").read_text()
    assert second.wait(SECONDS) == 0, (tmp_path / "there-worker.log").read_text()
    records, broken = read_records(here)
    assert not broken
    assert {record.status.value for record in records} == {"completed"}
    assert len(records) == 6 + 2
    own = {record.run_id for record in read_records(there)[0]}
    assert own, "the second member has trained nothing: the test shows nothing"
    for run_id in own:
        run = here / "runs" / run_id
        assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 0
        assert len(read_metrics(run / "metrics.jsonl").rows) == 60
    confirmed = state_of(here, "apart").confirmed
    assert [len(line.values["eval/loss"]) for line in confirmed] == [2]


@pytest.fixture
def study(ask, tmp_path):
    question = load_question(str(ask("store")), [])
    study = Study.open(
        question, f"sqlite:///{tmp_path}/study.db", eval_every_steps=None, total_steps=8
    )
    yield study
    study.close()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://bucket/prefix", "as a whole"),
        ("gs://bucket", "a directory or in s3://bucket"),
        ("/dev/null/here", "cannot be made"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(study, place, said):
    with pytest.raises(RequestError, match=said):
        RunArtifacts(study, place)
