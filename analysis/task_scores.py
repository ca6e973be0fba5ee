"""Which of the metrics of lm-evaluation-harness's tasks a table shows where nothing says which. Pure."""

from collections.abc import Iterable, Sequence

from analysis.frame import Row
from harness.records.metrics import is_task_metric

MOST_TASKS = 6
"""Columns of tasks; of more only those asked for by name, as a group is and its 57 tasks are not."""
_FIRST = (
    *("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "f1", "bits_per_byte"),
    *("word_perplexity", "perplexity"),
)
"""The metric that stands for a task is the first of these that it has."""


def task_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return one metric of each task that runs were scored on."""
    by_task: dict[str, list[str]] = {}
    for name in _after(rows):
        by_task.setdefault(name.split("/")[1], []).append(name)
    tasks = sorted(by_task)
    if len(tasks) > MOST_TASKS:
        asked = {name for row in rows for name in row.get("eval.tasks") or ()}
        tasks = [task for task in tasks if task in asked][:MOST_TASKS]
    return tuple(min(by_task[task], key=_rank) for task in tasks)


def _after(rows: Iterable[Row]) -> list[str]:
    keys = {key for row in rows for key, value in row.items() if value is not None}
    names = {key.removeprefix("after.") for key in keys if key.startswith("after.eval/")}
    return sorted(
        name
        for name in names
        if is_task_metric(name) and not name.endswith((".standard_error", ".n"))
    )


def _rank(name: str) -> tuple[int, str]:
    metric = name.split("/")[2]
    return (_FIRST.index(metric) if metric in _FIRST else len(_FIRST), name)
