"""The one entry to evaluation: everything that `EvalConfig` asks for, of one model, by metric name."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from harness.config.schema import DataConfig, EvalConfig
from harness.data.prompts import read_prompts
from harness.data.templates import prompt_ids, stop_ids, trained_answer, turn_end
from harness.evals import base_domain
from harness.evals.choices import evenly_spaced, load_questions
from harness.evals.context import evaluating
from harness.evals.copies import ALONE, Copies
from harness.evals.generation import Decoding, generate_copies
from harness.evals.result import EvalResult
from harness.evals.strided import strided_rows
from harness.evals.text_scores import exact_match_scores, rouge_l_scores, words
from harness.evals.token_loss import (
    bytes_with_loss,
    loss_results,
    loss_scores,
    score_copies,
)
from harness.records.answers import Answer
from harness.records.metrics_log import check_metric_names
from harness.records.scores import RowScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.example import Example
    from harness.data.prepare import PreparedData
    from harness.data.rows import TokenRows

logger = logging.getLogger(__name__)


LOSS_METRICS = (
    *("eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/token_accuracy"),
    *(base_domain.LOSS, base_domain.BITS, base_domain.FORGETTING),
)
"""What an evaluation with `loss_only` gives: the first four always, the others where they are asked for."""


class Results(dict[str, EvalResult]):
    """Each metric's result, by its name in `harness.records.metrics`; answers, and scores row by row."""

    answers: tuple[Answer, ...] = ()
    tasks: Mapping[str, Any] | None = None
    """How lm-evaluation-harness's tasks were asked, and what they cost; None without such tasks."""

    def __init__(self, results: Mapping[str, EvalResult]) -> None:
        """Take results whose rows are not known."""
        super().__init__(results)
        self.scores: dict[str, RowScores] = {}
        """By metric; what follows from another metric's rows has none of its own."""

    def take(self, others: "Results") -> None:
        """Add what another part of the evaluation found."""
        self.update(others)
        self.answers += others.answers
        self.scores |= others.scores
        self.tasks = others.tasks or self.tasks


def evaluate_model(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prepared: "PreparedData",
    config: EvalConfig,
    data: DataConfig,
    *,
    loss_only: bool = False,
) -> Results:
    """Evaluate one model; see `evaluate_copies`."""
    return evaluate_copies(
        model, tokenizer, prepared, config, data, copies=ALONE, loss_only=loss_only
    )[0]


def evaluate_copies(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prepared: "PreparedData",
    config: EvalConfig,
    data: DataConfig,
    *,
    copies: Copies,
    loss_only: bool = False,
) -> list[Results]:
    """Return the results on `config.split` of every copy of a model.

    Loss, perplexity, bits per byte and token accuracy always; exact match and ROUGE-L where `config.generate`
    and the data have prompts; choice accuracy where there is `choice_path`; loss and bits per byte of text of
    the base's own domain where there is `base_domain`; those of `config.tasks`. With `loss_only` the losses.

    The model is a transformers causal LM; it is called in evaluation mode and left in the mode that it
    came in.

    Raises:
        DataError: the split has no rows.
        RequestError: `config.max_new_tokens` fills the model's context, or as `check_choices` does.
    """
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        rows = _rows(tokenizer, prepared, config, data)
        sums = score_copies(model, rows, config.batch_size, device, copies)
        bytes_N = bytes_with_loss(rows, tokenizer)
        results = [Results(loss_results(of_copy, rows.source_N, bytes_N)) for of_copy in sums]
        for of_copy, of_rows in zip(results, sums, strict=True):
            of_copy.scores = loss_scores(of_rows, rows.source_N)
        further: list[list[Results]] = []
        if config.base_domain is not None:
            further.append(_base_domain_results(model, tokenizer, config, data, device, copies))
        if not loss_only:
            examples = prepared.splits.of(config.split)
            asked = [
                row
                for row, example in enumerate(examples)
                if example.has_prompt and example.turns[-1].carries_loss
            ]
            if config.generate and asked:
                rows_asked = [asked[i] for i in evenly_spaced(len(asked), config.generate_rows)]
                chosen = {row: examples[row] for row in rows_asked}
                further.append(
                    _generation_results(model, tokenizer, chosen, config, data, device, copies)
                )
            if data.answers is not None:
                further.append(_asked_results(model, tokenizer, config, data, device, copies))
            if config.choice_path is not None:
                further.append(_choice_results(model, tokenizer, config, device, copies))
            if config.tasks:
                further.append(task_results(model, tokenizer, config, device, copies))
    for part in further:
        for of_copy, added in zip(results, part, strict=True):
            of_copy.take(added)
    for of_copy in results:
        check_metric_names(of_copy)
    return results


def _base_domain_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    data: DataConfig,
    device: torch.device,
    copies: Copies,
) -> list[Results]:
    """Return the loss on text of the base's own domain."""
    found = []
    for results, scores in base_domain.score_base_domain(
        model, tokenizer, config, data.max_length, device, copies
    ):
        of_copy = Results(results)
        of_copy.scores = scores
        found.append(of_copy)
    return found


def _rows(
    tokenizer: "PreTrainedTokenizerBase",
    prepared: "PreparedData",
    config: EvalConfig,
    data: DataConfig,
) -> "TokenRows":
    """Return the rows to score: as they are trained on, or windows over the joined text."""
    if config.stride is None:
        return prepared.rows(config.split)
    examples = prepared.splits.of(config.split)
    return strided_rows(examples, tokenizer, data.max_length, config.stride)


def _generation_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Mapping[int, "Example"],
    config: EvalConfig,
    data: DataConfig,
    device: torch.device,
    copies: Copies,
) -> list[Results]:
    """Return exact match and ROUGE-L of greedy answers to the prompts of `examples`, by row of the split."""
    from harness.evals.modules.exact_match import ExactMatch  # `evaluate` is slow to import
    from harness.evals.modules.rouge_l import RougeL

    given, said = _answered(model, tokenizer, list(examples.values()), config, data, device, copies)
    references = [trained_answer(example, data, tokenizer) for example in examples.values()]
    seen = [index for index, text in enumerate(references) if words(text)]
    rows, found = list(examples), []
    for texts in said:
        scored = {"eval/exact_match": _computed(ExactMatch, "exact_match", texts, references)}
        of_rows = {"eval/exact_match": _of_rows(rows, exact_match_scores(texts, references))}
        if seen:  # ROUGE of a reference without a word is not defined
            chosen = [[text[index] for index in seen] for text in (texts, references)]
            scored["eval/rouge_l"] = _computed(RougeL, "rouge_l", *chosen)
            of_rows["eval/rouge_l"] = _of_rows([rows[i] for i in seen], rouge_l_scores(*chosen))
        results = Results(scored)
        results.scores = of_rows
        results.answers = tuple(
            Answer(row=row, prompt=prompt, reference=reference, answer=answer)
            for row, prompt, reference, answer in zip(
                examples, given, references, texts, strict=True
            )
        )
        found.append(results)
    return found


def _asked_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    data: DataConfig,
    device: torch.device,
    copies: Copies,
) -> list[Results]:
    """Return the answers to the prompts of `data.answers`, which are kept and not scored."""
    assert data.answers is not None
    prompts = read_prompts(data.answers, data, "data.answers")
    examples = [prompt.example for prompt in prompts]
    given, said = _answered(model, tokenizer, examples, config, data, device, copies)
    found = []
    for texts in said:
        results = Results({})
        results.answers = tuple(
            Answer(row=row, prompt=shown, reference=prompt.reference, answer=text, asked=True)
            for row, (prompt, shown, text) in enumerate(zip(prompts, given, texts, strict=True))
        )
        found.append(results)
    return found


def _answered(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence["Example"],
    config: EvalConfig,
    data: DataConfig,
    device: torch.device,
    copies: Copies,
) -> tuple[list[str], list[list[str]]]:
    """Return the prompts as the model is given them, and the greedy answers of every copy to them."""
    prompts = [prompt_ids(example, data, tokenizer) for example in examples]
    generated = generate_copies(
        model,
        tokenizer,
        prompts,
        Decoding(
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            extra_stop_ids=stop_ids(data, tokenizer),
        ),
        device,
        copies,
    )
    if generated[0].num_cut_prompts:
        logger.warning(
            "the start of %d of %d prompts was cut off: they do not fit the model's context together with "
            "eval.max_new_tokens=%d",
            generated[0].num_cut_prompts,
            len(examples),
            config.max_new_tokens,
        )
    given = tokenizer.batch_decode(prompts, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
    end = turn_end(data, tokenizer)
    said = [[t.partition(end)[0] if end else t for t in each.texts] for each in generated]
    return list(given), said


def _choice_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    device: torch.device,
    copies: Copies,
) -> list[Results]:
    """Return the accuracy of multiple choice by likelihood, one copy after the other."""
    from harness.evals.choice_scoring import choose_answers
    from harness.evals.modules.choice_accuracy import ChoiceAccuracy

    questions = load_questions(config)
    results: list[Results] = []
    for one in copies.parts(1):
        with copies.sharing(one, 0):
            answers = choose_answers(
                model, tokenizer, questions, batch_size=config.batch_size, device=device
            )
        if not results and (answers.num_with_fewer_shots or answers.num_cut):
            logger.warning(
                "of %d questions %d had fewer than eval.choice_shots=%d solved examples, and %d lost the "
                "start of their prompt too, to fit the model's context",
                len(questions),
                answers.num_with_fewer_shots,
                config.choice_shots,
                answers.num_cut,
            )
        right = [item.question.answer for item in questions]
        chosen = {"": answers.chosen, "_raw": answers.chosen_raw}
        scores = {
            f"eval/choice_accuracy{suffix}": _computed(
                ChoiceAccuracy, "choice_accuracy", indices, right
            )
            for suffix, indices in chosen.items()
        }
        of_copy = Results(scores)
        of_copy.scores = {
            f"eval/choice_accuracy{suffix}": _of_rows(
                range(len(right)), [float(a == b) for a, b in zip(indices, right, strict=True)]
            )
            for suffix, indices in chosen.items()
        }
        results.append(of_copy)
    return results


def task_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    config: EvalConfig,
    device: torch.device,
    copies: Copies,
) -> list[Results]:
    """Return the results of every copy on lm-evaluation-harness's tasks, by `eval/TASK/METRIC`."""
    from harness.evals.task_scoring import score_tasks

    found = []
    for each in score_tasks(model, tokenizer, config, device, copies):
        results = Results(each.results)
        results.scores, results.tasks = each.rows, each.about
        found.append(results)
    return found


def tasks_note(phase: str, about: Mapping[str, Any]) -> str:
    """Return what a reader should know of how tasks were scored, and of what it cost."""
    beside = f", answered for {about['copies']} adapters at once" if about["copies"] > 1 else ""
    return (
        f"eval.tasks {phase} training: {about['requests']:,} requests of lm-evaluation-harness "
        f"{about['version']} in {about['seconds']:.1f} s{beside}"
    )


def _of_rows(rows: Sequence[int], scores: Sequence[float]) -> RowScores:
    """Return scores of which each counts alike."""
    return RowScores(rows=tuple(rows), sums=tuple(scores), weights=(1,) * len(scores))


def _computed(
    metric: Any, name: str, predictions: Sequence[Any], references: Sequence[Any]
) -> EvalResult:
    """Compute one `evaluate` metric in memory, with its directory out of the user's cache."""
    with tempfile.TemporaryDirectory() as directory:
        module = metric(keep_in_memory=True, cache_dir=directory, seed=0)
        values = module.compute(predictions=list(predictions), references=list(references))
    return EvalResult(value=values[name], standard_error=values["standard_error"], n=values["n"])
