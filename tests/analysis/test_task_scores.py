"""Columns of lm-evaluation-harness's tasks in tables that nobody has asked for by metric."""

from analysis.shares import is_share
from analysis.task_scores import MOST_TASKS, task_columns


def row(*names: str, tasks: tuple[str, ...] = ()) -> dict:
    found = {f"after.{name}{end}": 0.5 for name in names for end in ("", ".standard_error", ".n")}
    return {**found, "eval.tasks": tasks, "before.eval/other/acc": 0.5, "after.eval/loss": 1.0}


def test_a_task_has_one_column_its_normalized_accuracy_first():
    rows = [
        row("eval/arc_easy/acc", "eval/arc_easy/acc_norm"),
        row("eval/gsm8k/exact_match/strict-match", "eval/gsm8k/exact_match/flexible-extract"),
        row("eval/wikitext/word_perplexity", "eval/wikitext/bits_per_byte"),
        row("eval/own/anything"),
    ]
    assert task_columns(rows) == (
        "eval/arc_easy/acc_norm",
        "eval/gsm8k/exact_match/flexible-extract",
        "eval/own/anything",
        "eval/wikitext/bits_per_byte",
    )
    assert task_columns([{"after.eval/loss": 1.0}]) == ()


def test_of_many_tasks_the_group_that_was_asked_for_stands_for_them():
    subjects = [f"eval/mmlu_{number}/acc" for number in range(MOST_TASKS)]
    assert task_columns([row("eval/mmlu/acc", *subjects, tasks=("mmlu",))]) == ("eval/mmlu/acc",)


def test_accuracies_of_tasks_are_shares_and_perplexities_are_not():
    assert is_share("eval/arc_easy/acc_norm")
    assert is_share("eval/gsm8k/exact_match/strict-match")
    assert is_share("eval/exact_match")
    assert not is_share("eval/wikitext/word_perplexity")
    assert not is_share("eval/loss")
