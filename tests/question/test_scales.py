"""One file, several scales: what `scale=NAME` takes, and what it refuses."""

import pytest

from harness.errors import RequestError
from harness.question.draft import at_scale, split_scale
from harness.question.load import load_question
from tests.question.asking import ask, refusal

SCALES = {
    "small": {"base": ["lora.rank=2"], "margin": 0.1},
    "large": {"space": {"lora.alpha": None, "optim.lr": "choice(1e-3, 2e-3)"}},
}
PARTS = {"space": {"lora.alpha": "choice(4, 8)"}, "margin": 0.5, "scales": SCALES}


def test_the_first_scale_is_the_default_and_names_the_sweep(tmp_path) -> None:
    question = ask(tmp_path, **PARTS)
    assert question.name == "asked_small"
    assert question.base[-1] == "lora.rank=2"
    assert question.margin == 0.1
    assert [axis.key for axis in question.space.axes] == ["lora.alpha"]


def test_axes_stand_beside_the_files_and_null_takes_one_away(tmp_path) -> None:
    question = ask(tmp_path, "scale=large", **PARTS)
    assert question.name == "asked_large"
    assert [axis.key for axis in question.space.axes] == ["optim.lr"]
    assert question.margin == 0.5


def test_an_override_comes_after_the_scale(tmp_path) -> None:
    question = ask(tmp_path, "lora.rank=4", "scale=small", "name=mine", **PARTS)
    assert "lora.rank=4" in question.base
    assert question.name == "mine"


def test_a_scale_that_is_none_is_refused_with_near_names(tmp_path) -> None:
    said = refusal(tmp_path, "scale=smal", **PARTS)
    assert "scale=smal is none of its scales; near names: small; there are small, large" in said
    assert "scale=small would be ignored" in refusal(tmp_path, "scale=small")
    assert "must be a mapping of names to parts" in refusal(tmp_path, scales={"small": []})
    assert "unknown key 'baes'" in refusal(tmp_path, scales={"small": {"baes": []}})


def test_a_question_written_out_needs_no_scale(tmp_path) -> None:
    question = ask(tmp_path, **PARTS)
    assert "scales" not in question.tree()
    assert split_scale(["a=1", "scale=x", "scale=y"]) == ("y", ["a=1"])
    assert at_scale({"base": []}, None, "") == {"base": []}


def test_a_directory_of_questions_is_reached_by_its_name() -> None:
    assert load_question("papers/qlora_table2", []).name == "qlora_table2_embedded"
    with pytest.raises(RequestError, match="no such file; near names: papers/qlora_table"):
        load_question("papers/qlora_table3", [])
