"""Choices by likelihood against a computation written out for one row at a time."""

import pytest

torch = pytest.importorskip("torch")

from harness.data.rows import NO_LOSS  # noqa: E402
from harness.evals.choice_scoring import (  # noqa: E402
    ChoiceRow,
    _ending,
    _num_shared,
    choice_rows,
    choose_answers,
)
from harness.evals.choices import (  # noqa: E402
    Question,
    ShotQuestion,
    answers,
    prompt_text,
    read_choices,
)

CPU = torch.device("cpu")


def _log_likelihood(model, tokenizer, prompt: str, answer: str) -> float:
    """Return log p(answer | prompt): the tokens of the whole that the prompt alone does not have."""
    whole, known = tokenizer(prompt + answer)["input_ids"], tokenizer(prompt)["input_ids"]
    assert whole[: len(known)] == known
    with torch.no_grad():
        log_p_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_p_TV[t - 1, whole[t]].item() for t in range(len(known), len(whole)))


def _choose(model, tokenizer, items, batch_size=8):
    return choose_answers(model, tokenizer, items, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_arc_choices_equal_a_computation_by_hand(
    model, tokenizer, arc_rows, write_jsonl, batch_size
):
    questions = read_choices(write_jsonl(arc_rows))[:16]
    expected, unnormalized = [], []
    for question in questions:
        sums = [
            _log_likelihood(model, tokenizer, prompt_text(question, []), answer)
            for answer in answers(question)
        ]
        per_char = [total / len(text) for total, text in zip(sums, question.choices, strict=True)]
        expected.append(per_char.index(max(per_char)))
        unnormalized.append(sums.index(max(sums)))
    items = [ShotQuestion(question=question, shots=()) for question in questions]
    assert _choose(model, tokenizer, items, batch_size).chosen == expected
    assert expected != unnormalized  # so that the test sees the normalization


def test_mmlu_choices_with_shots_equal_a_computation_by_hand(
    model, tokenizer, mmlu_rows, write_jsonl
):
    mmlu = read_choices(write_jsonl(mmlu_rows))
    by_subject = {q.subject: [s for s in mmlu if s.subject == q.subject] for q in mmlu}
    short = sorted(mmlu, key=lambda q: len(prompt_text(q, [])))[:10]
    items = [ShotQuestion(question=q, shots=(_another(by_subject[q.subject], q),)) for q in short]
    expected = []
    for item in items:
        prompt = prompt_text(item.question, item.shots)
        sums = [
            _log_likelihood(model, tokenizer, prompt, letter) for letter in (" A", " B", " C", " D")
        ]
        expected.append(sums.index(max(sums)))
    outcome = _choose(model, tokenizer, items)
    assert (outcome.chosen, outcome.num_with_fewer_shots, outcome.num_cut) == (expected, 0, 0)


def _another(questions: list[Question], question: Question) -> Question:
    return next(q for q in questions if q is not question)


def test_shots_are_dropped_from_the_front_until_the_prompt_fits(
    model, tokenizer, mmlu_rows, write_jsonl, monkeypatch
):
    mmlu = read_choices(write_jsonl(mmlu_rows))
    question, *shots = [q for q in mmlu if q.subject == "held_out_lookup"]
    item = ShotQuestion(question=question, shots=tuple(shots))
    last_only = prompt_text(question, shots[-1:])
    known = tokenizer(last_only)["input_ids"]
    room = max(len(tokenizer(f"{last_only} {letter}")["input_ids"]) for letter in "ABCD")
    monkeypatch.setattr(model.config, "max_position_embeddings", room)
    seen = _inputs_of(model, monkeypatch)
    outcome = _choose(model, tokenizer, [item])
    assert (outcome.num_with_fewer_shots, outcome.num_cut) == (1, 0)
    assert [row[: len(known)] for row in seen[0].tolist()] == [known] * 4


def test_a_question_too_long_by_itself_keeps_its_end(
    model, tokenizer, mmlu_rows, write_jsonl, monkeypatch
):
    question = read_choices(write_jsonl(mmlu_rows))[0]
    monkeypatch.setattr(model.config, "max_position_embeddings", 20)
    seen = _inputs_of(model, monkeypatch)
    outcome = _choose(model, tokenizer, [ShotQuestion(question=question, shots=())])
    assert (outcome.num_with_fewer_shots, outcome.num_cut) == (0, 1)
    whole = tokenizer(prompt_text(question, []) + " A")["input_ids"]
    assert seen[0][0, :20].tolist() == whole[-20:]


def _inputs_of(model, monkeypatch) -> list:
    """Return a list that the input ids of every forward pass are added to."""
    seen: list = []
    forward = model.forward

    def record(*args, **kwargs):
        seen.append(kwargs["input_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", record)
    return seen


def test_rows_are_padded_and_carry_loss_on_the_choice_alone() -> None:
    rows = choice_rows([ChoiceRow(ids=[7, 8, 9, 5], start=2), ChoiceRow(ids=[7, 8], start=1)])
    assert rows.input_ids_NT.tolist() == [[7, 8, 9, 5], [7, 8, 0, 0]]
    assert rows.targets_NT.tolist() == [[NO_LOSS, 9, 5, NO_LOSS], [8, NO_LOSS, NO_LOSS, NO_LOSS]]
    assert rows.lengths_N.tolist() == [4, 2]
    assert rows.source_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("start", "length", "kept", "kept_start"),
    [
        (4, 9, [1, 2, 3, 4, 5, 6], 4),
        (4, 6, [1, 2, 3, 4, 5, 6], 4),
        (4, 5, [2, 3, 4, 5, 6], 3),
        (4, 3, [4, 5, 6], 1),
        (4, 2, [5, 6], 1),  # of a choice that is too long itself the first token is context
    ],
)
def test_a_row_that_is_too_long_keeps_its_end(
    start: int, length: int, kept: list[int], kept_start: int
) -> None:
    row = _ending(ChoiceRow(ids=[1, 2, 3, 4, 5, 6], start=start), length)
    assert row == ChoiceRow(ids=kept, start=kept_start)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 4]], 2),
        ([[1, 2, 3], [4, 2, 3]], 0),
        ([[5]], 1),
        ([[1, 2, 3], [1, 9, 3]], 1),
    ],
)
def test_rows_share_what_they_begin_with(rows: list[list[int]], shared: int) -> None:
    assert _num_shared(rows) == shared


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_questions_are_answered_alike_however_many_are_taken_at_a_time(
    model, tokenizer, arc_rows, write_jsonl, monkeypatch, at_a_time
):
    questions = read_choices(write_jsonl(arc_rows))[:7]
    items = [ShotQuestion(question=question, shots=()) for question in questions]
    together = _choose(model, tokenizer, items)
    monkeypatch.setattr("harness.evals.choice_scoring._QUESTIONS_AT_A_TIME", at_a_time)
    assert _choose(model, tokenizer, items) == together
