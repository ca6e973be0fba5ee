"""Scores of lm-evaluation-harness's tasks: its prompts, its filters, its metrics, our answers.

Its `evaluate` is called once for each copy of a model, with the same requests, which are answered for all
copies when the first is asked.
"""

import contextlib
import io
import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from harness.config.schema import EvalConfig
from harness.errors import RequestError, first_line
from harness.evals.copies import Copies
from harness.evals.result import EvalResult
from harness.evals.tasks import is_local, task_files, tasks_fingerprint, tasks_version
from harness.records.metrics import task_metric
from harness.records.scores import RowScores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_SEED = 1234
"""lm-evaluation-harness's own, of numpy, torch and the choice of solved examples; of `random` it is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """What a copy of a model scores on tasks, and what that cost."""

    results: dict[str, EvalResult]
    rows: dict[str, RowScores]
    """Scores by document, of metrics that are their mean."""
    about: dict[str, Any]
    """Version of the library, each task's version and solved examples, requests, seconds, copies."""


def load_tasks(config: EvalConfig) -> dict[str, Any]:
    """Return the tasks and groups that a configuration names, with their documents read.

    Raises RequestError for a definition or documents that cannot be used. What is loaded stays in memory.
    """
    names = [
        str(file.absolute())
        for name in config.tasks
        for file in (task_files(name) if is_local(name) else [name])
        if not isinstance(file, str)
    ]
    registered = [name for name in config.tasks if not is_local(name)]
    return _loaded(
        (*registered, *names), config.num_fewshot, bool(registered), tasks_fingerprint(config)
    )


@lru_cache(maxsize=1)
def _loaded(
    names: Sequence[str], num_fewshot: int | None, registered: bool, contents: str | None
) -> dict[str, Any]:
    with _quiet():
        from lm_eval.tasks import TaskManager

        try:
            manager = TaskManager(include_defaults=registered)
            loaded: dict[str, Any] = dict(manager.load(list(names)))
        except KeyError:  # a group of one's own may name registered tasks
            if registered:
                raise
            return _loaded(names, num_fewshot, True, contents)
        except Exception as error:
            raise _refusal(error) from error
        for name, task in loaded["tasks"].items():
            _settle(name, task, num_fewshot)
    return loaded


def _refusal(error: Exception) -> RequestError:
    return RequestError(
        f"eval.tasks cannot be loaded by lm-evaluation-harness {tasks_version()}: "
        f"{type(error).__name__}: {first_line(error)}"
    )


def _settle(name: str, task: Any, num_fewshot: int | None) -> None:
    """Give a task its solved examples as lm-evaluation-harness's command line does; look at its documents."""
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        what = (
            "runs code that a model writes"
            if getattr(task, "UNSAFE_CODE", False)
            else "shows pictures"
        )
        raise RequestError(f"eval.tasks: {name} {what}, which is not done here")
    _check_sentences(name, task)
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:  # 0 is part of what the task is
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    if not len(task.eval_docs):
        raise RequestError(f"eval.tasks: {name} has no documents")


_BY_SENTENCES = {"change_case:capital_word_frequency", "length_constraints:number_sentences"}
"""IFEval's instructions that nltk cuts a text for; the others need no data of it."""


def _check_sentences(name: str, task: Any) -> None:
    """Refuse IFEval's documents that cannot be scored here, before a model is trained for them."""
    if "ifeval" not in getattr(task.config.process_results, "__module__", ""):
        return
    asking = sum(not _BY_SENTENCES.isdisjoint(d["instruction_id_list"]) for d in task.eval_docs)
    if not asking:
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise RequestError(
            f"eval.tasks: {asking} of the {len(task.eval_docs)} documents of {name} need nltk's punkt_tab, "
            "which is not here; `python -m nltk.downloader punkt_tab` fetches it"
        ) from None


def score_tasks(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    device: "torch.device",
    copies: Copies,
) -> list[TaskScores]:
    """Return what every copy of a model scores on `config.tasks`; the model is in evaluation mode.

    Raises RequestError as `load_tasks` does, and for a task that asks for what is not done here.
    """
    if config.apply_chat_template and not tokenizer.chat_template:
        raise RequestError(
            "eval.apply_chat_template=true, and the model's tokenizer has no chat template; leave it out"
        )
    loaded = load_tasks(config)
    for task in loaded["tasks"].values():  # else the second time other examples would be drawn
        task.set_fewshot_seed(seed=_SEED)
    with _quiet(), _own_randomness():
        from harness.evals.packed_lm import PackedLM

        began = time.perf_counter()
        lm = PackedLM(model, tokenizer, device, copies, batch_size=config.batch_size)
        found = [_evaluated(lm, loaded, config, number) for number in range(copies.count)]
        seconds = time.perf_counter() - began
    cost = {"requests": lm.num_requests, "seconds": round(seconds, 3), "copies": copies.count}
    return [
        TaskScores(results=_results(each), rows=_rows(each, loaded), about=_about(each) | cost)
        for each in found
    ]


def _evaluated(lm: Any, loaded: dict[str, Any], config: EvalConfig, number: int) -> dict[str, Any]:
    """Return lm-evaluation-harness's results for one copy; its requests are made for the first."""
    from lm_eval.evaluator import evaluate

    lm.copy = number
    with _requests_kept(loaded) if number else contextlib.nullcontext():
        return dict(
            evaluate(
                lm=lm,
                task_dict=loaded,  # pyright: ignore[reportArgumentType]
                limit=config.limit,  # pyright: ignore[reportArgumentType]
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.apply_chat_template,
            )
            or {}
        )


@contextlib.contextmanager
def _requests_kept(loaded: dict[str, Any]) -> Iterator[None]:
    """Let tasks ask what they have asked: building prompts again would take longer than the answers."""
    for task in loaded["tasks"].values():
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}
        task.build_all_requests = lambda **_: None
    try:
        yield
    finally:
        for task in loaded["tasks"].values():
            del task.build_all_requests


# What is found -----------------------------------------------------------------------------------


def _measured(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Yield task or group, metric, filter and value of everything that was measured."""
    for name, values in found["results"].items():
        for key, value in values.items():
            metric, comma, chosen_by = key.partition(",")
            if comma and not metric.endswith("_stderr") and _is_number(value):
                yield name, metric, chosen_by, float(value)


def _results(found: Mapping[str, Any]) -> dict[str, EvalResult]:
    results = {}
    for name, metric, chosen_by, value in _measured(found):
        error = found["results"][name].get(f"{metric}_stderr,{chosen_by}")
        results[task_metric(name, metric, chosen_by)] = EvalResult(
            value=value,
            standard_error=float(error) if _is_number(error) else None,
            n=_documents(found, name),
        )
    return results


def _documents(found: Mapping[str, Any], name: str) -> int:
    """Return how many documents a task's value is of, or a group's."""
    counts = found["n-samples"]
    if name in counts:
        return int(counts[name]["effective"])
    return sum(_documents(found, child) for child in found["group_subtasks"].get(name, ()))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(found: Mapping[str, Any], loaded: dict[str, Any]) -> dict[str, RowScores]:
    """Return each document's score of the metrics that are their mean, and of bits per byte."""
    from lm_eval.api.metrics import mean

    rows = {}
    for name, samples in found["samples"].items():
        aggregated = loaded["tasks"][name].aggregation()
        by: dict[str, list[Any]] = {}
        for sample in samples:
            by.setdefault(sample["filter"], []).append(sample)
        for chosen_by, chosen in by.items():
            numbers = tuple(sample["doc_id"] for sample in chosen)
            for metric in chosen[0]["metrics"]:
                values = [sample[metric] for sample in chosen]
                key = task_metric(name, metric, chosen_by)
                if metric == "bits_per_byte":
                    sums = tuple(-likelihood / math.log(2) for likelihood, _ in values)
                    weights = tuple(int(count) for _, count in values)
                    rows[key] = RowScores(rows=numbers, sums=sums, weights=weights)
                elif aggregated.get(metric) is mean and all(map(_is_score, values)):
                    sums = tuple(float(value) for value in values)
                    rows[key] = RowScores(rows=numbers, sums=sums, weights=(1,) * len(sums))
    return rows


def _is_score(value: Any) -> bool:
    return _is_number(value) or isinstance(value, bool) or hasattr(value, "__float__")


def _about(found: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {
        name: {
            "version": str(found["versions"].get(name, "—")),
            "num_fewshot": int(found["n-shot"].get(name, 0)),
            "documents": _documents(found, name),
        }
        for name in found["samples"]
    }
    return {"version": tasks_version(), "tasks": tasks}


# Its manners -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep its log, prints and progress bars, and those of `datasets`, off the terminal and `--json`."""
    import datasets
    import tqdm

    # transformers warns of texts that are longer than a context, which are cut into windows later
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels, bars = [logger.level for logger in loggers], datasets.is_progress_bar_enabled()
    made = tqdm.tqdm.__init__
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()

    def silent(self: Any, *arguments: Any, **settings: Any) -> None:
        made(self, *arguments, **(settings | {"disable": True}))

    tqdm.tqdm.__init__ = silent  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with contextlib.redirect_stdout(io.StringIO()), _nltk_heard():
            yield
    finally:
        tqdm.tqdm.__init__ = made
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _nltk_heard() -> Iterator[None]:
    """Let nltk say what it cannot fetch to stderr as it is now, not as it was at its import."""
    nltk: Any = sys.modules.get("nltk")
    if nltk is None:
        yield
        return
    download = nltk.download
    nltk.download = partial(download, print_error_to=sys.stderr)
    try:
        yield
    finally:
        nltk.download = download


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Draw from its seeds, and leave the process's generators where they were."""
    import numpy as np
    import torch

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
