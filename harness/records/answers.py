"""answers.jsonl: the generated answers of every evaluation of a run, one JSON object a line.

Keys: `phase` (before, after), `step` (optimizer steps made), `row` (of the split), `prompt`, `reference`,
`answer`, `asked` (true: of `data.answers`). Must not import torch, transformers or wandb.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.parsing import Unreadable, read_json, shaped
from harness.records.redact import redact
from harness.records.run_directory import write_text

NUM_SAMPLES = 8
SAMPLE_COLUMNS = ("prompt", "reference", "answer before", "answer after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One generated answer."""

    row: int
    """Number of the example in its split."""
    prompt: str
    """As the model was given it, with the template around it."""
    reference: str
    answer: str
    asked: bool = False
    """Whether `row` counts the prompts of `data.answers`, not the examples of a split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer(Answer):
    """An answer, and when it was given."""

    phase: str
    step: int


def keep_answers(path: Path, phase: str, step: int, answers: Sequence[Answer]) -> None:
    """Write the answers of one phase, without secrets, in place of any that the phase has left before."""
    lines = [
        json.dumps({"phase": phase, "step": step} | {k: _plain(v) for k, v in asdict(each).items()})
        for each in answers
    ]
    others = [json.dumps(_tree(each)) for each in read_answers(path) if each.phase != phase]
    write_text(path, "".join(f"{line}\n" for line in [*others, *lines]))


def read_answers(path: Path) -> list[KeptAnswer]:
    """Return the answers of a run; a missing file has none, and a line that is no answer is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        with contextlib.suppress(Unreadable):
            found.append(shaped(KeptAnswer, read_json(line)))
    return found


def samples(answers: Iterable[KeptAnswer]) -> list[Sequence[str]]:
    """Return what was answered, as prompt, reference, answer before and after training.

    Every prompt of `data.answers`, then the first rows of the split.
    """
    by_row: dict[tuple[bool, int], dict[str, KeptAnswer]] = {}
    for answer in answers:
        by_row.setdefault((answer.asked, answer.row), {})[answer.phase] = answer
    asked = [phases for (own, _), phases in by_row.items() if own]
    rows = [phases for (own, _), phases in by_row.items() if not own]
    found = []
    for phases in [*asked, *rows[:NUM_SAMPLES]]:
        some = next(iter(phases.values()))
        said = [phases[phase].answer if phase in phases else "" for phase in ("before", "after")]
        found.append((some.prompt, some.reference, *said))
    return found


def _tree(answer: KeptAnswer) -> dict[str, str | int]:
    return {"phase": answer.phase, "step": answer.step} | {
        k: v for k, v in asdict(answer).items() if k not in ("phase", "step")
    }


def _plain(value: str | int) -> str | int:
    return redact(value) if isinstance(value, str) else value
