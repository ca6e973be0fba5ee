"""Multiple-choice files: what is read, what is refused, and how a prompt reads."""

import json
from itertools import islice

import pytest

from harness.config.schema import EvalConfig
from harness.embedded.corpus import SKILLS, Part, skill_pairs
from harness.errors import DataError, RequestError
from harness.evals.choices import (
    ChoiceForm,
    answers,
    check_choices,
    evenly_spaced,
    load_questions,
    prompt_text,
    read_choices,
    score_divisors,
)


def _mmlu(text: str = "Two plus two?", subject: str | None = "some_maths", answer: int = 1) -> dict:
    row = {"question": text, "choices": ["3", "4", "5", "6"], "answer": answer}
    return row if subject is None else {**row, "subject": subject}


def _held_out(skill: str):
    return skill_pairs(skill, Part.HELD_OUT, seed=6)


def _arc(text: str = "What is wet?") -> dict:
    choices = {"text": ["Water", "Sand"], "label": ["1", "2"]}
    return {"question": text, "choices": choices, "answerKey": "1"}


def test_files_of_the_published_forms_are_read_whole(mmlu_rows, arc_rows, write_jsonl):
    mmlu = read_choices(write_jsonl(mmlu_rows, "mmlu.jsonl"))
    arc = read_choices(write_jsonl(arc_rows, "arc.jsonl"))
    assert (len(mmlu), {q.form for q in mmlu}) == (54, {ChoiceForm.mmlu})
    assert len({q.subject for q in mmlu}) == 9
    assert (len(arc), {q.form for q in arc}) == (48, {ChoiceForm.arc})
    responses = [p.response for skill in SKILLS for p in islice(_held_out(skill), 4)]
    assert [q.choices[q.answer] for q in arc] == responses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, r"'question' must be a text, got ''"),
        ({"choices": None}, r"'choices' must be a list .* got None"),
        ({"choices": ["only"]}, r"'choices' must be a list of 2 to 26 texts .* \['only'\]"),
        ({"choices": ["a", 2]}, r"'choices' must be a list of 2 to 26 texts"),
        ({"answer": 4}, r"'answer' must be an index from 0 to 3, got 4"),
        ({"answer": True}, r"'answer' must be an index from 0 to 3, got True"),
        ({"answer": "B"}, r"'answer' must be an index from 0 to 3, got 'B'"),
        ({"subject": 3}, r"'subject' must be a text or left out, got 3"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, r"'choices.label' must be .* 2 labels"),
        (
            {"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
            r"'answerKey' must be one of the labels \['A', 'B'\], got 'C'",
        ),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(write_jsonl, change, message):
    path = write_jsonl([_mmlu(), {**_mmlu(), **change}])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {message}"):
        read_choices(path)


def test_what_is_no_file_of_questions_is_refused(tmp_path, write_jsonl):
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"broken\.jsonl:1: not JSON: "):
        read_choices(str(tmp_path / "broken.jsonl"))
    with pytest.raises(DataError, match=r"empty\.jsonl has no questions"):
        read_choices(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match=r"emty\.jsonl: no such file .* near names: empty\.jsonl"):
        read_choices(str(tmp_path / "emty.jsonl"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a question of arc form in a file .* mmlu"):
        read_choices(write_jsonl([_mmlu(), _arc()]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvalConfig(choice_shots=5), r"eval\.choice_shots=5 would be ignored: eval\.choice_path"),
        (EvalConfig(choice_rows=5), r"eval\.choice_rows=5 would be ignored"),
        (EvalConfig(choice_shots_path="x"), r"eval\.choice_shots_path=x would be ignored"),
        (EvalConfig(choice_path="x", choice_shots=-1), r"choice_shots=-1 must be at least 0"),
        (EvalConfig(choice_path="x", choice_rows=0), r"choice_rows=0 must be at least 1"),
        (EvalConfig(choice_path="x", choice_shots=2), r"needs eval\.choice_shots_path"),
        (
            EvalConfig(choice_path="x", choice_shots_path="y"),
            r"eval\.choice_shots_path=y would be ignored: eval\.choice_shots=0",
        ),
        (EvalConfig(choice_path="nowhere.jsonl"), r"nowhere\.jsonl: no such file"),
    ],
)
def test_wrong_or_ineffective_keys_are_refused(config, message):
    with pytest.raises(RequestError, match=message):
        check_choices(config)


def test_no_choices_asked_for_is_fine():
    check_choices(EvalConfig())
    assert load_questions(EvalConfig()) == ()


def test_more_shots_than_a_subject_has_are_refused(write_jsonl):
    questions = write_jsonl([_mmlu("Q?", "law"), _mmlu("R?", "art")])
    shots = write_jsonl([_mmlu(s, s) for s in ("law", "law", "art")], "shots.jsonl")
    config = EvalConfig(choice_path=questions, choice_shots_path=shots, choice_shots=2)
    with pytest.raises(RequestError, match=r"has 1 examples of subject 'art' .* use at most 1"):
        check_choices(config)


def test_shots_of_another_form_are_refused(write_jsonl):
    shots = write_jsonl([_arc()], "shots.jsonl")
    config = EvalConfig(choice_path=write_jsonl([_mmlu()]), choice_shots_path=shots, choice_shots=1)
    with pytest.raises(RequestError, match=r"questions of arc form, .* of mmlu form"):
        check_choices(config)


def test_a_question_is_never_its_own_shot(write_jsonl):
    path = write_jsonl([_mmlu(text, "law") for text in ("A?", "B?", "C?")])
    config = EvalConfig(choice_path=path, choice_shots_path=path, choice_shots=2)
    shots = [[shot.text for shot in item.shots] for item in load_questions(config)]
    assert shots == [["B?", "C?"], ["A?", "C?"], ["A?", "B?"]]
    with pytest.raises(RequestError, match="has 2 examples"):
        check_choices(
            EvalConfig(choice_path=path, choice_shots_path=path, choice_shots=3),
        )


def test_few_questions_are_spread_over_the_subjects(mmlu_rows, write_jsonl):
    config = EvalConfig(choice_path=write_jsonl(mmlu_rows), choice_rows=9)
    assert len({item.question.subject for item in load_questions(config)}) == 9
    assert evenly_spaced(5, 2) == [0, 2]
    assert evenly_spaced(3, 9) == evenly_spaced(3, None) == [0, 1, 2]


def test_mmlu_prompt_is_the_published_one(write_jsonl):
    path = write_jsonl([_mmlu(), _mmlu("Three?", answer=0)])
    question, shot = read_choices(path)
    assert prompt_text(question, [shot]) == (
        "The following are multiple choice questions (with answers) about some maths.\n\n"
        "Three?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: A\n\n"
        "Two plus two?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
    )


def test_mmlu_prompt_without_a_subject(write_jsonl):
    (question,) = read_choices(write_jsonl([_mmlu(subject=None)]))
    heading = "The following are multiple choice questions (with answers).\n\nTwo plus two?\n"
    assert prompt_text(question, []).startswith(heading)


def test_arc_prompt(write_jsonl):
    question, shot = read_choices(write_jsonl([_arc(), _arc("What is dry?")]))
    assert prompt_text(question, [shot]) == (
        "Question: What is dry?\nAnswer: Water\n\nQuestion: What is wet?\nAnswer:"
    )


@pytest.mark.parametrize(
    ("count", "limit", "indices"),
    [
        (10, 4, [0, 2, 5, 7]),
        (10, 1, [0]),
        (4, 4, [0, 1, 2, 3]),
        (5, 4, [0, 1, 2, 3]),
        (7, 3, [0, 2, 4]),
    ],
)
def test_few_are_evenly_spaced_over_many(count: int, limit: int, indices: list[int]) -> None:
    assert evenly_spaced(count, limit) == indices


@pytest.mark.parametrize(("count", "works"), [(1, False), (2, True), (26, True), (27, False)])
def test_a_question_has_two_choices_and_a_letter_for_each(write_jsonl, count, works):
    texts = [f"text {n}" for n in range(count)]
    mmlu = {"question": "Q?", "choices": texts, "answer": count - 1}
    arc = {"question": "Q?", "choices": {"text": texts, "label": texts}, "answerKey": texts[-1]}
    for row in (mmlu, arc):
        path = write_jsonl([row])
        if not works:
            with pytest.raises(DataError, match="2 to 26 texts"):
                read_choices(path)
            continue
        (question,) = read_choices(path)
        assert question.answer == count - 1
        letters = [f" {chr(ord('A') + n)}" for n in range(count)]
        assert list(answers(question)) == (letters if row is mmlu else [f" {t}" for t in texts])
        assert list(score_divisors(question)) == [1 if row is mmlu else len(t) for t in texts]


@pytest.mark.parametrize("answer", [-1, 4, 1.0, None])
def test_an_answer_is_the_index_of_a_choice(write_jsonl, answer):
    with pytest.raises(DataError, match="an index from 0 to 3"):
        read_choices(write_jsonl([{**_mmlu(), "answer": answer}]))
    assert read_choices(write_jsonl([_mmlu(answer=0)]))[0].answer == 0


def test_blank_lines_are_counted_and_half_a_character_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    good = json.dumps(_mmlu())
    file.write_text(f"{good}\n\n  \n{good}\n")
    assert len(read_choices(str(file))) == 2
    file.write_text(f"{good}\n\n" + good.replace("Two", "\\ud83d"))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: a text has half of a character"):
        read_choices(str(file))
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: cannot be read: nested too deeply"):
        read_choices(str(file))


def test_the_smallest_numbers_that_can_be_asked_for(write_jsonl):
    path = write_jsonl([_mmlu(text, "law") for text in ("A?", "B?")])
    one = EvalConfig(choice_path=path, choice_shots_path=path, choice_shots=1, choice_rows=1)
    check_choices(one)
    (item,) = load_questions(one)
    assert (item.question.text, [shot.text for shot in item.shots]) == ("A?", ["B?"])
    none = load_questions(EvalConfig(choice_path=path))
    assert [item.shots for item in none] == [(), ()]
