"""The one entry to evaluation: everything that `EvalConfig` asks for, of one model, by metric name."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from harness.config.schema import DataConfig, EvalConfig
from harness.data.templates import prompt_ids
from harness.evals.choices import evenly_spaced, load_questions
from harness.evals.context import evaluating
from harness.evals.copies import ALONE, Copies
from harness.evals.generation import Decoding, generate_copies
from harness.evals.result import EvalResult
from harness.evals.token_loss import loss_results, score_copies
from harness.records.answers import Answer
from harness.records.metrics import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.example import Example
    from harness.data.prepare import PreparedData

logger = logging.getLogger(__name__)


LOSS_METRICS = ("eval/loss", "eval/perplexity", "eval/token_accuracy")
"""What every evaluation gives, and one with `loss_only` nothing else."""


class Results(dict[str, EvalResult]):
    """Each metric's result, by its name in `harness.records.metrics`; and the answers that were scored."""

    answers: tuple[Answer, ...] = ()

    def take(self, others: "Results") -> None:
        """Add what another part of the evaluation found."""
        self.update(others)
        self.answers += others.answers


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
        sums = score_copies(model, rows, config.batch_size, device, copies)
        results = [Results(loss_results(of_copy, rows.source_N)) for of_copy in sums]
        further: list[list[Results]] = []
        if not loss_only:
            examples = prepared.splits.of(config.split)
            asked = [row for row, example in enumerate(examples) if example.has_prompt]
            if config.generate and asked:
                rows_asked = [asked[i] for i in evenly_spaced(len(asked), config.generate_rows)]
                chosen = {row: examples[row] for row in rows_asked}
                further.append(
                    _generation_results(model, tokenizer, chosen, config, data, device, copies)
                )
            if config.choice_path is not None:
                further.append(_choice_results(model, tokenizer, config, device, copies))
    for part in further:
        for of_copy, added in zip(results, part, strict=True):
            of_copy.take(added)
    for of_copy in results:
        assert of_copy.keys() <= METRICS.keys(), of_copy.keys() - METRICS.keys()
    return results


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

    prompts = [prompt_ids(example, data, tokenizer) for example in examples.values()]
    generated = generate_copies(
        model,
        tokenizer,
        prompts,
        Decoding(
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            extra_stop_ids=end_of_turn_ids(tokenizer),
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
    references = [example.response for example in examples.values()]
    given = tokenizer.batch_decode(prompts, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
    found = []
    for answers in generated:
        scored = {
            "eval/exact_match": _computed(ExactMatch, "exact_match", answers.texts, references),
            "eval/rouge_l": _computed(RougeL, "rouge_l", answers.texts, references),
        }
        results = Results(scored)
        results.answers = tuple(
            Answer(row=row, prompt=prompt, reference=reference, answer=answer)
            for row, prompt, reference, answer in zip(
                examples, given, references, answers.texts, strict=True
            )
        )
        found.append(results)
    return found


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
        accuracy = _computed(ChoiceAccuracy, "choice_accuracy", answers.chosen, right)
        results.append(Results({"eval/choice_accuracy": accuracy}))
    return results


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
