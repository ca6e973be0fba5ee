"""Tasks for lm-evaluation-harness on held-out text of the embedded language: one of each kind of request.

    python -m bench.lm_eval_tasks DIRECTORY

writes DIRECTORY/*.yaml with the rows beside them. No hub is asked: `dataset_path: json` reads the files.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from harness.embedded.corpus import SKILLS, STORY, Part, documents, skill_pairs

NAMES = ("stories_choice", "stories_last_word", "stories_text", "stories_answer")
"""Multiple choice, log-likelihood, rolling log-likelihood, generation with two filters."""


def write_tasks(directory: Path, rows: int = 24, shots: int = 2) -> list[str]:
    """Write a definition and `rows` documents of each task; return the paths of the definitions."""
    directory.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(Part.HELD_OUT, rows, seed=6)
    examples = _pairs(Part.HELD_OUT, 8, seed=7)
    stories = _stories(rows)
    told = [_whole(pair.prompt, pair.response) for pair in pairs]
    solved = [_whole(pair.prompt, pair.response) for pair in examples]
    asks = "Question: {{prompt}}\nAnswer:"
    tasks: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, Any]]] = {
        "stories_choice": (
            _with_choices(told),
            _with_choices(solved),
            {
                "output_type": "multiple_choice",
                "doc_to_text": asks,
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "num_fewshot": shots,
                "metric_list": [_metric("acc", "mean", True), _metric("acc_norm", "mean", True)],
            },
        ),
        "stories_last_word": (
            [_ending(text) for text in stories],
            None,
            {
                "output_type": "loglikelihood",
                "doc_to_text": "{{start}}",
                "doc_to_target": " {{end}}",
                "metric_list": [
                    _metric("perplexity", "perplexity", False),
                    _metric("acc", "mean", True),
                ],
            },
        ),
        "stories_text": (
            [{"text": text} for text in [" ".join(stories[:6]), *stories[6:]]],
            None,
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [
                    _metric("word_perplexity", "weighted_perplexity", False),
                    _metric("byte_perplexity", "weighted_perplexity", False),
                    _metric("bits_per_byte", "bits_per_byte", False),
                ],
            },
        ),
        "stories_answer": (
            told,
            None,
            {
                "output_type": "generate_until",
                "doc_to_text": "{{prompt}}\n",  # as the embedded model has seen it
                "doc_to_target": "{{response}}",
                "generation_kwargs": {
                    "until": ["\n"],
                    "do_sample": False,
                    "max_gen_toks": 24,
                },
                "filter_list": [
                    {"name": "whole", "filter": [_step("take_first")]},
                    {
                        "name": "first-word",
                        "filter": [_step("regex", regex_pattern=r"(\w+)"), _step("take_first")],
                    },
                ],
                "metric_list": [_metric("exact_match", "mean", True) | {"ignore_case": True}],
            },
        ),
    }
    return [_write(directory, name, *tasks[name]) for name in NAMES]


def _pairs(part: Part, count: int, seed: int) -> list[Any]:
    """Return questions and answers, one of each skill in turn."""
    each = -(-count // len(SKILLS))
    by_skill = [list(islice(skill_pairs(skill, part, seed=seed), each)) for skill in SKILLS]
    return [pair for turn in zip(*by_skill, strict=True) for pair in turn][:count]


def _stories(count: int) -> list[str]:
    held_out = documents(Part.HELD_OUT, seed=5)
    return list(islice((d.response for d in held_out if d.skill == STORY), count))


def _whole(prompt: str, response: str) -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


def _with_choices(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each question four choices, of which three answer others."""
    answers = [row["response"] for row in rows]
    found = []
    for index, row in enumerate(rows):
        others = [text for text in answers[index:] + answers[:index] if text != row["response"]]
        choices = [*dict.fromkeys(others)][:3]
        choices.insert(index % 4, row["response"])
        found.append(row | {"choices": choices, "answer": choices.index(row["response"])})
    return found


def _ending(text: str) -> dict[str, Any]:
    words = text.split()
    last = 2 * len(words) // 3
    return {"start": " ".join(words[:last]), "end": words[last]}


def _metric(name: str, aggregation: str, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def _step(function: str, **settings: Any) -> dict[str, Any]:
    return {"function": function, **settings}


def _write(
    directory: Path,
    name: str,
    rows: Sequence[dict[str, Any]],
    shots: Sequence[dict[str, Any]] | None,
    definition: dict[str, Any],
) -> str:
    files = {"test": _write_rows(directory / f"{name}.jsonl", rows)}
    splits = {"test_split": "test"}
    if shots is not None:
        files["train"] = _write_rows(directory / f"{name}_solved.jsonl", shots)
        splits |= {"training_split": "train", "fewshot_split": "train"}
    tree = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        **splits,
        **definition,
        "metadata": {"version": 1.0},
    }
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(file)


def _write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file.absolute())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    print("\n".join(write_tasks(parser.parse_args().directory)))
