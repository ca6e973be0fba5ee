"""`harness evaluate`: what a run has left, scored later as it would have been at once, many in one pass."""

import json
from pathlib import Path

import pytest

from bench.lm_eval_tasks import write_tasks
from harness.cli.main import dispatch
from harness.records.record import read_record
from harness.records.run_directory import RunDirectory
from harness.records.scores import read_scores
from tests.commands.left_runs import left_run

pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    write_tasks(directory, rows=6)
    return directory


@pytest.fixture(scope="module")
def asked(tasks: Path) -> str:
    return f"eval.tasks=[{tasks / 'stories_choice.yaml'},{tasks / 'stories_text.yaml'}]"


@pytest.fixture(scope="module")
def runs(out: Path, asked: str) -> list[RunDirectory]:
    """Two runs that ask for no task, and the first once more, which asks for them itself."""
    alike = ("quant=none", "optim.lr=0.01")
    return [
        left_run(out, *alike),
        left_run(out, *alike, "lora.rank=2"),
        left_run(out, *alike, asked),
    ]


def test_a_run_scored_later_has_what_it_would_have_had_at_once(out, runs, asked, capsys):
    names = [run.path.name for run in runs[:2]]
    losses = [read_record(run.record).evals["after"]["eval/loss"] for run in runs]
    capsys.readouterr()
    assert dispatch(["evaluate", *names, asked, f"paths.out={out}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    later, other, at_once = (read_record(run.record) for run in runs)
    assert [each["run_id"] for each in told] == names
    for phase in ("before", "after"):
        assert later.evals[phase] == at_once.evals[phase]
        assert read_scores(runs[0].scores, phase) == read_scores(runs[2].scores, phase)
    bits = "eval/stories_text/bits_per_byte"
    assert told[0]["evals"]["after"][bits]["value"] == later.evals["after"][bits].value
    assert other.evals["before"][bits] == later.evals["before"][bits]
    assert len({each.evals["after"][bits].value for each in (later, other)}) == 2
    assert [read_record(run.record).evals["after"]["eval/loss"] for run in runs] == losses
    assert later.provenance["lm_eval"]["after"]["copies"] == 2
    assert later.config == read_record(runs[0].record).config


def test_a_task_more_is_added_to_those_that_are_there(out, runs, tasks, capsys):
    name = runs[2].path.name
    asked = f"eval.tasks=[{tasks / 'stories_last_word.yaml'}]"
    words = ["evaluate", name, asked, "eval.limit=2", "eval.before=false", f"paths.out={out}"]
    assert dispatch(words) == 0
    assert "stories_last_word acc" in capsys.readouterr().out
    record = read_record(runs[2].record)
    assert record.evals["after"]["eval/stories_last_word/acc"].n == 2
    assert "eval/stories_last_word/acc" not in record.evals["before"]
    assert record.evals["after"].keys() >= {"eval/loss", "eval/stories_choice/acc"}
    known = record.provenance["lm_eval"]["after"]["tasks"]
    assert known.keys() == {"stories_choice", "stories_text", "stories_last_word"}
    assert "eval/stories_choice/acc" in read_scores(runs[2].scores, "after")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs a run or a sweep first"),
        (["RUN"], "needs eval.tasks"),
        (["nothing", "eval.tasks=[gsm8k]"], "no run or sweep"),
        (["RUN", "eval.tasks=[gsm8k]", "eval.split=test"], "eval.split=test would be ignored"),
        (["RUN", "eval.tasks=[gsm8k]", "lora.rank=4"], "lora.rank=4 would be ignored"),
        (["RUN", "eval.tasks=[gms8k]"], "'gms8k' is no task"),
    ],
)
def test_what_cannot_be_scored_is_refused(out, runs, words, says, capsys):
    named = [runs[0].path.name if word == "RUN" else word for word in words]
    before = runs[0].record.read_bytes()
    assert dispatch(["evaluate", *named, f"paths.out={out}"]) == 2
    assert says in capsys.readouterr().err
    assert runs[0].record.read_bytes() == before
