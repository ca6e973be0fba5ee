"""Names of tasks: refused where nothing answers to them, and part of what a run is by their contents."""

import importlib.util
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.cli.main import dispatch
from harness.config.compose import compose_run
from harness.config.schema import EvalConfig
from harness.errors import DataError, RequestError
from harness.evals import tasks
from harness.evals.tasks import check_tasks, task_data, tasks_fingerprint
from harness.plan.fetch import fetched

pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")

DEFINITION = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
process_docs: !function scores.docs
include: part_yaml
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A definition that names data, a function and a part of itself."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "scores.py").write_text("def docs(rows):\n    return rows\n")
    (tmp_path / "part_yaml").write_text("output_type: multiple_choice\n")
    file = tmp_path / "own.yaml"
    file.write_text(DEFINITION.replace("DATA", str(tmp_path / "rows.jsonl")))
    return file


def test_the_librarys_own_tasks_groups_and_tags_are_known():
    check_tasks(
        EvalConfig(tasks=["arc_easy", "mmlu", "ai2_arc", "hellaswag", "piqa", "gsm8k", "ifeval"])
    )


def test_a_name_that_nothing_answers_to_is_refused_with_near_ones():
    with pytest.raises(RequestError, match=r"'arc_esy' is no task.*arc_easy"):
        check_tasks(EvalConfig(tasks=["arc_easy", "arc_esy"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("dataset_path: json\n", "neither `task:` nor `group:`"),
        ("task: [\n", "cannot be read"),
        ("- task: a\n", "neither"),
    ],
)
def test_a_file_that_defines_no_task_is_refused(tmp_path, text, words):
    file = tmp_path / "some.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=words):
        check_tasks(EvalConfig(tasks=[str(file)]))
    with pytest.raises(DataError):
        check_tasks(EvalConfig(tasks=[str(tmp_path / "nowhere") + "/"]))


def test_without_the_library_the_extra_is_named_and_nothing_is_touched(
    own, tmp_path, monkeypatch, capsys
):
    real = importlib.util.find_spec
    monkeypatch.setattr(tasks, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    out = tmp_path / "out"
    assert dispatch(["run", f"eval.tasks=[{own}]", f"paths.out={out}"]) == 2
    assert "pip install 'qlora-harness[lm_eval]'" in capsys.readouterr().err
    assert not out.exists()


def test_contents_of_what_a_definition_names_are_part_of_what_a_run_is(own):
    def told() -> str | None:
        return tasks_fingerprint(EvalConfig(tasks=[str(own)]))

    found = [told()]
    for name in ("rows.jsonl", "scores.py", "part_yaml", "own.yaml"):
        file = own.parent / name
        file.write_text(file.read_text() + "\n\n")
        found.append(told())
    assert len(set(found)) == 5
    directory = tasks_fingerprint(EvalConfig(tasks=[str(own.parent)]))
    assert directory == tasks_fingerprint(EvalConfig(tasks=[str(own)]))
    assert tasks_fingerprint(EvalConfig()) is None
    assert tasks_fingerprint(EvalConfig(tasks=["gsm8k"])) != tasks_fingerprint(
        EvalConfig(tasks=["piqa"])
    )


def test_the_librarys_manners_end_with_what_it_is_asked(capsys):
    import datasets
    import tqdm

    from harness.evals.task_scoring import _own_randomness, _quiet

    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    shown = datasets.is_progress_bar_enabled()
    with _quiet():
        print("not seen")
        assert {logger.level for logger in loggers} == {logging.ERROR}
        assert not datasets.is_progress_bar_enabled()
        assert tqdm.tqdm([1, 2]).disable
    assert capsys.readouterr() == ("", "")
    assert [logger.level for logger in loggers] == levels
    assert datasets.is_progress_bar_enabled() is shown

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    found = []
    for _ in range(2):
        with _own_randomness():
            found.append(drawn())
    assert found[0] == found[1] != expected
    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)
    assert found[0] == drawn()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    assert drawn() == expected


def test_data_of_the_hub_is_named_by_a_tasks_definition_or_by_its_neighbours():
    assert task_data("hellaswag") == ["Rowan/hellaswag"]
    assert task_data("arc_easy") == ["allenai/ai2_arc"]
    assert task_data("mmlu") == ["cais/mmlu"], "a group, whose tasks lie beside it"
    assert task_data("none_of_them") == []


def test_a_plan_names_the_data_of_tasks_but_not_files_of_ones_own(own):
    words = ["eval.tasks=[gsm8k,mmlu]", "eval.generate=false"]
    lines = fetched([(compose_run(words), None)])
    assert lines == [
        "openai/gsm8k for the task gsm8k (its size is on the hub)",
        "cais/mmlu for the task mmlu (its size is on the hub)",
    ]
    assert fetched([(compose_run([f"eval.tasks=[{own}]"]), None)]) == []
