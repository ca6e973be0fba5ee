"""Multiple-choice questions: read, judged and written as prompts. Must not import torch or transformers.

Two forms are read, one JSON object per line. MMLU (Hendrycks et al. 2021, arXiv 2009.03300):
`{"subject", "question", "choices": [text, …], "answer": index}`; ARC (Clark et al. 2018, arXiv
1803.05457): `{"question", "choices": {"text": […], "label": […]}, "answerKey": label}`.
"""

import json
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from harness.config.schema import EvalConfig
from harness.errors import DataError, RequestError, near_names
from harness.parsing import home_path

_LETTERS = string.ascii_uppercase


class ChoiceForm(Enum):
    """How a question is asked: by letters that are listed (MMLU), or by the choices' own text (ARC)."""

    mmlu = "mmlu"
    arc = "arc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with at least two choices; `answer` is the index of the right one."""

    form: ChoiceForm
    subject: str | None
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotQuestion:
    """A question and the solved examples that come before it in its prompt."""

    question: Question
    shots: tuple[Question, ...]


def check_choices(config: EvalConfig) -> None:
    """Refuse what is wrong with the multiple-choice keys; reads the files.

    Raises:
        RequestError: a key out of range or one that would be ignored, shots without a file, or more shots
            than there are for a subject.
        DataError: a file that is missing, empty or malformed.
    """
    _check_keys(config)
    load_questions(config)


def _check_keys(config: EvalConfig) -> None:
    if config.choice_shots < 0:
        raise RequestError(f"eval.choice_shots={config.choice_shots} must be at least 0")
    if config.choice_rows is not None and config.choice_rows < 1:
        raise RequestError(f"eval.choice_rows={config.choice_rows} must be at least 1")
    if config.choice_path is None:
        given = {
            "choice_shots_path": config.choice_shots_path,
            "choice_shots": config.choice_shots or None,
            "choice_rows": config.choice_rows,
        }
        for key, value in given.items():
            if value is not None:
                raise RequestError(
                    f"eval.{key}={value} would be ignored: eval.choice_path, the file of questions, is "
                    "not given"
                )
    elif config.choice_shots and config.choice_shots_path is None:
        raise RequestError(
            f"eval.choice_shots={config.choice_shots} needs eval.choice_shots_path, the file to take the "
            "solved examples from"
        )
    elif config.choice_shots_path is not None and not config.choice_shots:
        raise RequestError(
            f"eval.choice_shots_path={config.choice_shots_path} would be ignored: eval.choice_shots=0; "
            "set it to the number of solved examples per prompt"
        )


def load_questions(config: EvalConfig) -> tuple[ShotQuestion, ...]:
    """Return the questions to score with their shots; none without `choice_path`. Raises as `check_choices`.

    Where `choice_rows` is fewer than there are, it takes them evenly spaced over the file, since MMLU's is
    sorted by subject. Shots are the first ones of the question's subject, never the question itself.
    """
    if config.choice_path is None:
        return ()
    questions = read_choices(config.choice_path)
    chosen = [questions[index] for index in evenly_spaced(len(questions), config.choice_rows)]
    if not config.choice_shots:
        return tuple(ShotQuestion(question=question, shots=()) for question in chosen)
    assert config.choice_shots_path is not None
    pool = read_choices(config.choice_shots_path)
    if pool[0].form is not chosen[0].form:
        raise RequestError(
            f"eval.choice_shots_path={config.choice_shots_path} has questions of {pool[0].form.value} "
            f"form, eval.choice_path={config.choice_path} of {chosen[0].form.value} form; a prompt "
            "cannot mix them"
        )
    return _with_shots(chosen, pool, config)


def _with_shots(
    questions: Sequence[Question], pool: Sequence[Question], config: EvalConfig
) -> tuple[ShotQuestion, ...]:
    by_subject: dict[str | None, list[Question]] = defaultdict(list)
    for shot in pool:
        by_subject[shot.subject].append(shot)
    result = []
    for question in questions:
        candidates = by_subject[question.subject]
        shots = [shot for shot in candidates[: config.choice_shots + 1] if shot != question]
        if len(shots) < config.choice_shots:
            others = sum(shot != question for shot in candidates)
            subject = f" of subject '{question.subject}'" if question.subject else ""
            raise RequestError(
                f"eval.choice_shots={config.choice_shots}, but {config.choice_shots_path} has {others} "
                f"examples{subject} besides the question itself; use at most {others}"
            )
        result.append(ShotQuestion(question=question, shots=tuple(shots[: config.choice_shots])))
    return tuple(result)


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return `limit` indices spread evenly over range(count), or all where `limit` is no fewer."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def read_choices(path: str) -> tuple[Question, ...]:
    """Return the questions of one file, all of one form.

    Raises:
        DataError: the file is missing, has no question, or a malformed one; names file and line.
    """
    questions: list[Question] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: not JSON: {error.msg} at column {error.colno}; a file of questions has one "
                "JSON object per line"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise DataError(f"{place}: cannot be read: {reason}") from None
        if _half_characters(row):
            raise DataError(
                f"{place}: a text has half of a character (a lone \\ud8…); write the pair"
            )
        question = _parsed(row, place)
        if questions and question.form is not questions[0].form:
            raise DataError(
                f"{place}: a question of {question.form.value} form in a file that began in "
                f"{questions[0].form.value} form; put them into two files"
            )
        questions.append(question)
    if not questions:
        raise DataError(f"{path} has no questions: it is empty")
    return tuple(questions)


def _half_characters(row: Any) -> bool:
    """Whether a text in a row has what no tokenizer takes."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_text(path: str) -> str:
    file = home_path(path)
    if not file.is_file():
        parent = file.parent
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise DataError(f"{path}: no such file of questions{near_names(file.name, names)}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None


def _parsed(row: Any, place: str) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a question is a JSON object, got {type(row).__name__}")
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: 'question' must be a text, got {text!r}")
    match row.get("choices"):
        case list() as choices:
            return _parsed_mmlu(row, text, choices, place)
        case dict() as choices:
            return _parsed_arc(row, text, choices, place)
        case other:
            raise DataError(
                f"{place}: 'choices' must be a list of texts (MMLU) or an object with 'text' and 'label' "
                f"(ARC), got {other!r}"
            )


def _parsed_mmlu(row: dict[str, Any], text: str, choices: list[Any], place: str) -> Question:
    texts = _choice_texts(choices, "choices", place)
    answer, subject = row.get("answer"), row.get("subject")
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise DataError(
            f"{place}: 'answer' must be an index from 0 to {len(texts) - 1}, got {answer!r}"
        )
    if subject is not None and (not isinstance(subject, str) or not subject.strip()):
        raise DataError(f"{place}: 'subject' must be a text or left out, got {subject!r}")
    return Question(form=ChoiceForm.mmlu, subject=subject, text=text, choices=texts, answer=answer)


def _parsed_arc(row: dict[str, Any], text: str, choices: dict[str, Any], place: str) -> Question:
    texts = _choice_texts(choices.get("text"), "choices.text", place)
    labels, key = choices.get("label"), row.get("answerKey")
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise DataError(
            f"{place}: 'choices.label' must be a list of {len(texts)} labels, got {labels!r}"
        )
    if labels.count(key) != 1:
        raise DataError(f"{place}: 'answerKey' must be one of the labels {labels}, got {key!r}")
    return Question(
        form=ChoiceForm.arc, subject=None, text=text, choices=texts, answer=labels.index(key)
    )


def _choice_texts(choices: Any, name: str, place: str) -> tuple[str, ...]:
    right = isinstance(choices, list) and 2 <= len(choices) <= len(_LETTERS)
    if not right or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise DataError(
            f"{place}: '{name}' must be a list of 2 to {len(_LETTERS)} texts that are not empty, got "
            f"{choices!r}"
        )
    return tuple(choices)


def prompt_text(question: Question, shots: Sequence[Question]) -> str:
    """Return everything before the answer; it ends without white space, and answers begin with a space.

    MMLU's wording is that of its authors' `evaluate.py` (github.com/hendrycks/test), ARC's that of
    EleutherAI's lm-evaluation-harness: no heading.
    """
    solved = "".join(f"{_asked(shot)}{answers(shot)[shot.answer]}\n\n" for shot in shots)
    return _heading(question) + solved + _asked(question)


def _heading(question: Question) -> str:
    match question.form:
        case ChoiceForm.mmlu:
            subject = (question.subject or "").replace("_", " ")
            about = f" about {subject}" if subject else ""
            return f"The following are multiple choice questions (with answers){about}.\n\n"
        case ChoiceForm.arc:
            return ""
        case _:
            assert_never(question.form)


def _asked(question: Question) -> str:
    match question.form:
        case ChoiceForm.mmlu:
            listed = zip(_LETTERS, question.choices, strict=False)
            options = "".join(f"\n{letter}. {choice}" for letter, choice in listed)
            return f"{question.text}{options}\nAnswer:"
        case ChoiceForm.arc:
            return f"Question: {question.text}\nAnswer:"
        case _:
            assert_never(question.form)


def answers(question: Question) -> tuple[str, ...]:
    """Return what would follow the prompt for each choice: ` A` … for MMLU, ` ` + its text for ARC."""
    match question.form:
        case ChoiceForm.mmlu:
            return tuple(f" {letter}" for letter in _LETTERS[: len(question.choices)])
        case ChoiceForm.arc:
            return tuple(f" {choice}" for choice in question.choices)
        case _:
            assert_never(question.form)


def score_divisors(question: Question) -> tuple[int, ...]:
    """Return what each choice's log-likelihood is divided by before the highest one is taken.

    MMLU's letters compare as they are. ARC's texts differ in length, which is worth probability, so theirs
    is taken per character: `acc_norm` of EleutherAI's lm-evaluation-harness, which the published ARC
    figures of open models use.
    """
    match question.form:
        case ChoiceForm.mmlu:
            return (1,) * len(question.choices)
        case ChoiceForm.arc:
            return tuple(map(len, question.choices))
        case _:
            assert_never(question.form)
