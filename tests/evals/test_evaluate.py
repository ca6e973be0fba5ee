"""The whole of an evaluation on real rows."""

import logging
from itertools import islice
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from harness.config.schema import DataConfig, DataForm, EvalConfig, Split  # noqa: E402
from harness.data.prepare import prepare_data  # noqa: E402
from harness.embedded.corpus import Part, documents, skill_pairs  # noqa: E402
from harness.evals.evaluate import evaluate_model, tasks_note  # noqa: E402

LOSS = {"eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/token_accuracy"}
TEXT = {"eval/exact_match", "eval/rouge_l"}


@pytest.fixture
def evaluated(model, tokenizer, tmp_path):
    """Return a function that evaluates the model on a data configuration."""

    def run(data: DataConfig, config: EvalConfig, **arguments: Any):
        prepared = prepare_data(data, tokenizer, "stories", tmp_path / "cache")
        return evaluate_model(model, tokenizer, prepared, config, data, **arguments)

    return run


@pytest.fixture
def questions(write_jsonl) -> DataConfig:
    """200 held-out questions, 20 of them for validation and 10 for the test."""
    asked = (d for d in documents(Part.HELD_OUT, seed=9) if d.prompt is not None)
    rows = [{"prompt": d.prompt, "response": d.response} for d in islice(asked, 200)]
    return DataConfig(
        path=write_jsonl(rows, "questions.jsonl"),
        validation_rows=20,
        test_rows=10,
        max_length=128,
    )


def test_every_metric_has_value_error_and_n(evaluated, questions, arc_rows, write_jsonl):
    path = write_jsonl(arc_rows, "arc.jsonl")
    config = EvalConfig(generate_rows=6, max_new_tokens=8, choice_path=path, choice_rows=10)
    results = evaluated(questions, config)
    assert results.keys() == LOSS | TEXT | {"eval/choice_accuracy", "eval/choice_accuracy_raw"}
    counts = {name: result.n for name, result in results.items()}
    assert counts == {
        **dict.fromkeys(LOSS, counts["eval/loss"]),
        **dict.fromkeys(TEXT, 6),
        "eval/choice_accuracy": 10,
        "eval/choice_accuracy_raw": 10,
    }
    assert 10 < counts["eval/loss"] <= 20
    assert 0 < results["eval/loss"].value < 0.2  # 0.043 over many more rows
    followed = {"eval/perplexity", "eval/bits_per_byte"}  # from the loss and its rows
    assert results.scores.keys() == results.keys() - followed
    for name, scores in results.scores.items():
        assert sum(scores.sums) / sum(scores.weights) == pytest.approx(results[name].value), name
        assert len(set(scores.rows)) == len(scores.rows) == results[name].n, name


def test_answers_that_equal_their_references_score_one(evaluated, model, tokenizer, write_jsonl):
    rows = []
    for prompt, _ in islice(skill_pairs("reverse", Part.HELD_OUT, seed=9), 4):
        ids = tokenizer(f"{prompt}\n", return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "response": answer})
    rows[0]["response"] = "something else entirely"
    data = DataConfig(
        path=write_jsonl([{"prompt": "x", "response": "y"}] * 4, "train.jsonl"),
        validation_path=write_jsonl(rows),
        test_rows=0,
        validation_rows=4,
    )
    results = evaluated(data, EvalConfig(max_new_tokens=12))
    assert results["eval/exact_match"].value == 0.75
    assert results["eval/exact_match"].standard_error == 0.25
    assert 0.75 <= results["eval/rouge_l"].value < 1


def test_only_the_loss_where_only_that_is_asked_for(evaluated, questions):
    assert evaluated(questions, EvalConfig(), loss_only=True).keys() == LOSS
    assert evaluated(questions, EvalConfig(generate=False, generate_rows=None)).keys() == LOSS


def test_the_split_is_the_one_asked_for(evaluated, questions):
    results = evaluated(questions, EvalConfig(split=Split.test), loss_only=True)
    assert results["eval/loss"].n <= 10


def test_plain_text_has_no_answers_to_generate(evaluated, stories, tmp_path):
    (tmp_path / "stories.txt").write_text("\n\n".join(stories))
    data = DataConfig(
        path=str(tmp_path / "stories.txt"),
        form=DataForm.text,
        validation_rows=3,
        test_rows=3,
        max_length=128,
    )
    assert evaluated(data, EvalConfig()).keys() == LOSS


def test_every_module_returns_to_its_own_mode(evaluated, questions, model):
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    try:
        evaluated(questions, EvalConfig(), loss_only=True)
        assert [module.training for module in model.modules()] == before
        with pytest.raises(AttributeError):
            evaluate_model(model, None, None, EvalConfig(), questions)  # pyright: ignore[reportArgumentType]
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()


def test_prompts_that_lose_their_start_are_reported(
    evaluated, questions, model, monkeypatch, caplog
):
    monkeypatch.setattr(model.config, "max_position_embeddings", 36)
    with caplog.at_level(logging.WARNING):
        evaluated(questions, EvalConfig(generate_rows=5, max_new_tokens=30))
    assert "the start of 5 of 5 prompts was cut off" in caplog.text


def test_answers_are_kept_with_their_row_prompt_and_reference(evaluated, write_jsonl, tmp_path):
    """Four prompts of seven rows, evenly spaced over those whose answer is learned; and one that is asked."""
    pairs = list(islice(skill_pairs("reverse", Part.HELD_OUT, seed=9), 8))
    rows: list[Any] = [
        {
            "messages": [
                {"role": "user", "content": pair.prompt},
                {"role": "assistant", "content": pair.response},
            ]
        }
        for pair in pairs
    ]
    rows[0]["messages"] += rows[1]["messages"]
    rows[0]["messages"][-1] = {**rows[0]["messages"][-1], "weight": 0}
    asking, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    (tmp_path / "asked.txt").write_text("How are you?\n\nWho is Tom?\n")
    data = DataConfig(
        path=write_jsonl([{"messages": [asking, answer]}], "train.jsonl"),
        validation_path=write_jsonl(rows),
        form=DataForm.messages,
        test_rows=0,
        answers=str(tmp_path / "asked.txt"),
    )
    results = evaluated(data, EvalConfig(max_new_tokens=3, generate_rows=4, batch_size=3))
    split = [each for each in results.answers if not each.asked]
    assert [each.row for each in split] == [1, 2, 4, 6]  # of 1 … 7: 0, 1, 3, 5
    for each in split:
        assert each.prompt.strip() == pairs[each.row].prompt
        assert each.reference.strip() == pairs[each.row].response
    asked = [each for each in results.answers if each.asked]
    assert [(each.row, each.prompt.strip(), each.reference) for each in asked] == [
        *((0, "How are you?", ""), (1, "Who is Tom?", "")),
    ]
    assert results.scores["eval/exact_match"].rows == (1, 2, 4, 6)
    right = [float(each.answer.strip() == each.reference.strip()) for each in split]
    assert list(results.scores["eval/exact_match"].sums) == right


def test_rouge_leaves_out_references_without_a_word(evaluated, write_jsonl):
    rows = [{"prompt": f"{n}?", "response": text} for n, text in enumerate(("a b", "!", "c"))]
    data = DataConfig(
        path=write_jsonl([{"prompt": "x", "response": "y"}] * 4, "train.jsonl"),
        validation_path=write_jsonl(rows),
        test_rows=0,
    )
    results = evaluated(data, EvalConfig(max_new_tokens=2))
    assert results["eval/exact_match"].n == 3
    assert results["eval/rouge_l"].n == 2
    assert results.scores["eval/rouge_l"].rows == (0, 2)


def test_prompts_that_lose_solved_examples_are_reported(
    evaluated, questions, model, mmlu_rows, write_jsonl, monkeypatch, caplog
):
    path = write_jsonl(mmlu_rows, "mmlu.jsonl")
    config = EvalConfig(
        choice_path=path, choice_shots_path=path, choice_shots=2, choice_rows=3, generate=False
    )
    with caplog.at_level(logging.WARNING):
        evaluated(questions, config)
    assert not caplog.records
    monkeypatch.setattr(model.config, "max_position_embeddings", 20)
    with caplog.at_level(logging.WARNING):
        evaluated(questions, config)
    said = "of 3 questions 3 had fewer than eval.choice_shots=2 solved examples, and 3 lost"
    assert said in caplog.text


def test_what_tasks_have_cost_is_said_in_a_sentence() -> None:
    about = {"requests": 1234, "version": "0.4", "seconds": 2.345, "copies": 1}
    said = "eval.tasks before training: 1,234 requests of lm-evaluation-harness 0.4 in 2.3 s"
    assert tasks_note("before", about) == said
    both = tasks_note("before", about | {"copies": 2})
    assert both == f"{said}, answered for 2 adapters at once"
