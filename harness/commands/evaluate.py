"""`harness evaluate`: adapters that runs have left, on tasks of lm-evaluation-harness.

Torch is imported only when everything that can be refused without it has been.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.commands.console import estimate_text, plain_table
from harness.commands.saved import find_saved, place_of
from harness.config.compose import compose_run
from harness.config.schema import EvalConfig, RunConfig
from harness.config.validate import validate
from harness.errors import RequestError
from harness.evals.tasks import check_tasks
from harness.question.keys import key_of
from harness.records.metrics import METRICS
from harness.records.record import Estimate, read_record, write_record
from harness.records.scores import keep_scores, read_scores
from harness.request import SavedRun
from harness.sweeping.display import WatchedConsole
from harness.training.libraries import import_libraries

if TYPE_CHECKING:
    from harness.evals.evaluate import Results

EVALUATE_HELP = """\
usage: harness evaluate RUN|SWEEP… eval.tasks=[TASK,…] [eval.num_fewshot=N] [eval.limit=N]
                        [eval.apply_chat_template=true] [eval.batch_size=32] [eval.before=false]
                        [paths.out=DIRECTORY] [--json]

Scores what runs have left on tasks of lm-evaluation-harness (extra lm_eval), with its prompts, filters and
metrics. TASK is one of its tasks, groups or tags (arc_easy, mmlu, gsm8k), a .yaml file that defines one, or a
directory of such files. RUN is a run's id, the start or the hash of it, or its directory; a sweep stands for
its best run. Runs that share a base are answered in one pass, and the base is scored once beside them, unless
eval.before=false.

Results go into the runs' records as eval/TASK/METRIC, before and after training, as if the run had asked for
them, and so into reports; scores of single documents into scores.jsonl. W&B is not told.
"""

_KEYS = ("tasks", "num_fewshot", "limit", "apply_chat_template", "batch_size", "before")

Scored = list[tuple[SavedRun, dict[str, "Results"]]]
"""Runs with their results by phase, before and after training."""


def evaluate_command(words: Sequence[str], *, as_json: bool) -> int:
    """Score the adapters of runs, and their base beside them; return the exit code."""
    names = [word for word in words if "=" not in word]
    if not names:
        raise RequestError(
            "harness evaluate needs a run or a sweep first; see harness evaluate --help"
        )
    asked, place = _read([word for word in words if "=" in word])
    found = {saved.name: saved for saved in (find_saved(name, place) for name in names)}
    import_libraries()
    from harness.base.quick_imports import quiet_libraries
    from harness.evals.task_scoring import load_tasks

    quiet_libraries()
    load_tasks(asked)
    by_base: dict[str, list[SavedRun]] = {}
    for saved in found.values():
        by_base.setdefault(saved.base_key, []).append(saved)
    scored = [line for group in by_base.values() for line in _scored(group, asked)]
    for saved, phases in scored:
        _keep(saved, phases)
    if as_json:
        print(json.dumps([_tree(saved, phases) for saved, phases in scored], indent=1))
    else:
        _print(scored)
    return 0


def _read(overrides: Sequence[str]) -> tuple[EvalConfig, RunConfig]:
    """Return what is asked, and where. Raises RequestError for a key of anything else."""
    of_tasks = [f"eval.{key}" for key in _KEYS]
    asked = [override for override in overrides if key_of(override) in of_tasks]
    place = place_of([override for override in overrides if override not in asked], also=of_tasks)
    config = compose_run(asked)
    if not config.eval.tasks:
        raise RequestError(
            "harness evaluate needs eval.tasks=[TASK,…]: names of lm-evaluation-harness's tasks, or .yaml "
            "files"
        )
    validate(config)
    check_tasks(config.eval)
    return config.eval, place


def _scored(group: Sequence[SavedRun], asked: EvalConfig) -> Scored:
    """Score runs that share a base, all in one pass, and the base alone."""
    from harness.training.evaluation import score_side_by_side
    from harness.training.launch import attach_saved, open_base

    first = group[0]
    shared = open_base(first.config, first.source, first.fingerprint)
    base: dict[str, Results] = {}
    if asked.before:  # the base as it came, which some adapters rewrite
        base["before"] = score_side_by_side(shared, [None], asked)[0]
    adapters = [attach_saved(shared, saved) for saved in group]
    results = score_side_by_side(shared, adapters, asked)
    return [(saved, base | {"after": after}) for saved, after in zip(group, results, strict=True)]


def _keep(saved: SavedRun, phases: "dict[str, Results]") -> None:
    """Put results into a run's record and scores, in place of earlier ones of the same tasks."""
    from harness.evals.evaluate import tasks_note

    assert saved.directory is not None
    with saved.directory.lock():
        record = read_record(saved.directory.record)
        for phase, results in phases.items():
            record.evals[phase] = record.evals.get(phase, {}) | dict(results)
            about = results.tasks
            assert about is not None
            known = record.provenance.setdefault("lm_eval", {}).get(phase) or {"tasks": {}}
            merged = {**about, "tasks": known["tasks"] | about["tasks"]}
            record.provenance["lm_eval"][phase] = merged
            note = tasks_note(phase, about)
            if note not in record.notes:
                record.notes.append(note)
            scores = read_scores(saved.directory.scores, phase)
            keep_scores(saved.directory.scores, phase, scores | results.scores)
        write_record(saved.directory.record, record)


def _tree(saved: SavedRun, phases: "dict[str, Results]") -> dict[str, Any]:
    evals = {
        phase: {name: asdict(result) for name, result in results.items()}
        for phase, results in phases.items()
    }
    return {"run_id": saved.name, "evals": evals}


def _print(scored: Scored) -> None:
    """Print a line for each metric, a column for the base of each run and for the run."""
    console = WatchedConsole(highlight=False)
    for saved, phases in scored:
        table = plain_table("metric", "base", "adapter", "n")
        before, after = phases.get("before", {}), phases["after"]
        for name in METRICS.in_order([*before, *after]):
            known: Estimate = after[name]
            table.add_row(
                METRICS[name].label,
                estimate_text(name, before.get(name)),
                estimate_text(name, known),
                f"{known.n:,}",
            )
        console.print(saved.name, markup=False, soft_wrap=True)
        console.print(table)
