"""What the embedded base can do: held-out losses and exact match per skill.

`python -m pretraining.measure` prints both for the shipped model.
"""

import argparse
import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from harness.embedded.corpus import SKILLS, Part, documents, skill_pairs
from harness.embedded.skills import Pair
from harness.embedded.tokenizer import load_tokenizer
from pretraining.rows import ROW_TOKENS, PackedRows, TokenKind, pack

MODEL_FOLDER = Path(__file__).parents[1] / "harness" / "embedded" / "model"
HELD_OUT_SEED = 1
HELD_OUT_ROWS = 256
PAIRS_PER_SKILL = 200


def held_out_rows(tokenizer: PreTrainedTokenizerFast, num_rows: int = HELD_OUT_ROWS) -> PackedRows:
    """The first rows of the held-out part; no text of theirs is in the pretraining part."""
    source = documents(Part.HELD_OUT, seed=HELD_OUT_SEED)
    return pack(source, tokenizer, num_rows=num_rows, row_tokens=ROW_TOKENS)


def token_losses(model: LlamaForCausalLM, rows: PackedRows, *, alone: bool = True) -> torch.Tensor:
    """The loss in nats of predicting each token but the first of its row: [R, T - 1] float32.

    With `alone`, a document is read as if it were alone; else after all that its row holds.
    """
    mask = rows.attention_mask() if alone else None
    logits_RTV = model(input_ids=rows.tokens_RT, attention_mask=mask, use_cache=False).logits
    targets = rows.tokens_RT[:, 1:]
    losses = cross_entropy(
        logits_RTV[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return losses.view_as(targets)


@torch.no_grad()
def held_out_losses(
    model: LlamaForCausalLM, rows: PackedRows, batch_rows: int = 32
) -> dict[str, float]:
    """Mean loss in nats per token over all scored tokens, and per `TokenKind`.

    Each document is read alone, so the packing changes nothing but the order of sums.
    """
    model.eval()
    starts = range(0, len(rows.tokens_RT), batch_rows)
    batches = [rows.rows(slice(start, start + batch_rows)) for start in starts]
    losses = torch.cat([token_losses(model, batch) for batch in batches])
    kinds = rows.kinds_RT[:, 1:]
    named = {"all": losses[kinds != TokenKind.UNSCORED].mean().item()}
    for kind in (TokenKind.PROMPT, TokenKind.RESPONSE, TokenKind.STORY):
        named[kind.name.lower()] = losses[kinds == kind].mean().item()
    return named


@torch.no_grad()
def greedy_responses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 100,
) -> list[str]:
    """The greedy response to each prompt up to EOS, in the prompts' order."""
    model.eval()
    responses = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        inputs = tokenizer(
            [f"{prompts[i]}\n" for i in chosen],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
        generated = model.generate(  # pyright: ignore[reportAttributeAccessIssue]  (its stub errs)
            **inputs, do_sample=False, max_new_tokens=max_new_tokens
        )
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            responses[i] = text
    return responses


def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> float:
    """The share of prompts whose greedy response equals the right one, byte for byte."""
    responses = greedy_responses(model, tokenizer, [pair.prompt for pair in pairs])
    right = [text == pair.response for text, pair in zip(responses, pairs, strict=True)]
    return sum(right) / len(right)


def exact_match_per_skill(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_pairs: int = PAIRS_PER_SKILL
) -> dict[str, float]:
    """Exact match of every skill on `num_pairs` held-out prompts each."""
    scores = {}
    for skill in SKILLS:
        pairs = list(islice(skill_pairs(skill, Part.HELD_OUT, seed=HELD_OUT_SEED), num_pairs))
        scores[skill] = exact_match(model, tokenizer, pairs)
    return scores


def load_model(folder: Path = MODEL_FOLDER) -> LlamaForCausalLM:
    """The saved weights, computed with in float32, so that every machine agrees closely."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    """Print the held-out losses, the perplexity and the exact match per skill as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the model")
    parser.add_argument("--pairs", type=int, default=PAIRS_PER_SKILL, help="prompts per skill")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model), load_tokenizer(arguments.model)
    losses = held_out_losses(model, held_out_rows(tokenizer))
    scores = exact_match_per_skill(model, tokenizer, arguments.pairs)
    report = {
        "held_out_loss": losses,
        "perplexity": math.exp(losses["all"]),
        "exact_match": scores,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
