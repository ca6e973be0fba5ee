"""The one entry to evaluation: everything that `EvalConfig` asks for, of one model, by metric name."""

import logging
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from harness.config import DataConfig, EvalConfig
from harness.data.templates import prompt_ids
from harness.evals.choices import evenly_spaced, load_questions
from harness.evals.context import evaluating
from harness.evals.generation import generate_greedily
from harness.evals.result import EvalResult
from harness.evals.token_loss import loss_results, score_rows
from harness.metrics import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.example import Example
    from harness.data.prepare import PreparedData

logger = logging.getLogger(__name__)


def evaluate_model(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prepared: "PreparedData",
    config: EvalConfig,
    data: DataConfig,
    *,
    loss_only: bool = False,
) -> dict[str, EvalResult]:
    """Return each metric's result on `config.split`, by its name in `harness.metrics`.

    Loss, perplexity and token accuracy always; exact match and ROUGE-L where `config.generate` and the data
    have prompts; choice accuracy where there is `choice_path`. With `loss_only` the first three. The model
    is a transformers causal LM; it is called in evaluation mode and left in the mode that it came in.

    Raises:
        DataError: the split has no rows.
        RequestError: `config.max_new_tokens` fills the model's context, or as `check_choices` does.
    """
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        rows = prepared.rows(config.split)
        sums = score_rows(model, rows, config.batch_size, device)
        results = loss_results(sums, rows.source_N)
        if not loss_only:
            asked = [e for e in prepared.splits.of(config.split) if e.has_prompt]
            if config.generate and asked:
                chosen = [asked[i] for i in evenly_spaced(len(asked), config.generate_rows)]
                results |= _generation_results(model, tokenizer, chosen, config, data, device)
            if config.choice_path is not None:
                results |= _choice_results(model, tokenizer, config, device)
    assert results.keys() <= METRICS.keys(), results.keys() - METRICS.keys()
    return results


def _generation_results(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence["Example"],
    config: EvalConfig,
    data: DataConfig,
    device: torch.device,
) -> dict[str, EvalResult]:
    """Return exact match and ROUGE-L of greedy answers to the prompts of `examples`."""
    from harness.evals.modules.exact_match import ExactMatch  # `evaluate` is slow to import
    from harness.evals.modules.rouge_l import RougeL

    generated = generate_greedily(
        model,
        tokenizer,
        [prompt_ids(example, data, tokenizer) for example in examples],
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        device=device,
        extra_stop_ids=end_of_turn_ids(tokenizer),
    )
    if generated.num_cut_prompts:
        logger.warning(
            "the start of %d of %d prompts was cut off: they do not fit the model's context together with "
            "eval.max_new_tokens=%d",
            generated.num_cut_prompts,
            len(examples),
            config.max_new_tokens,
        )
    references = [example.response for example in examples]
    return {
        "eval/exact_match": _computed(ExactMatch, "exact_match", generated.texts, references),
        "eval/rouge_l": _computed(RougeL, "rouge_l", generated.texts, references),
    }


def _choice_results(
    model: Any, tokenizer: "PreTrainedTokenizerBase", config: EvalConfig, device: torch.device
) -> dict[str, EvalResult]:
    """Return the accuracy of multiple choice by likelihood."""
    from harness.evals.choice_scoring import choose_answers
    from harness.evals.modules.choice_accuracy import ChoiceAccuracy

    questions = load_questions(config)
    answers = choose_answers(
        model, tokenizer, questions, batch_size=config.batch_size, device=device
    )
    if answers.num_with_fewer_shots or answers.num_cut:
        logger.warning(
            "of %d questions %d had fewer than eval.choice_shots=%d solved examples, and %d lost the start "
            "of their prompt too, to fit the model's context",
            len(questions),
            answers.num_with_fewer_shots,
            config.choice_shots,
            answers.num_cut,
        )
    right = [item.question.answer for item in questions]
    accuracy = _computed(ChoiceAccuracy, "choice_accuracy", answers.chosen, right)
    return {"eval/choice_accuracy": accuracy}


def _computed(
    metric: Any, name: str, predictions: Sequence[Any], references: Sequence[Any]
) -> EvalResult:
    """Compute one `evaluate` metric in memory, with its directory out of the user's cache."""
    with tempfile.TemporaryDirectory() as directory:
        module = metric(keep_in_memory=True, cache_dir=directory, seed=0)
        values = module.compute(predictions=list(predictions), references=list(references))
    return EvalResult(value=values[name], standard_error=values["standard_error"], n=values["n"])


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that end a turn of a chat before EOS ends the row: chatml's, where it has one."""
    token = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return [token] if isinstance(token, int) and token != tokenizer.unk_token_id else []
