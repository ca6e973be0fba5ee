"""The embedded base's model card, rendered from what its pretraining recorded."""

import math
from typing import Any

WORKED_SCORE = 0.9
_CURVE_ROWS = 12

_CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded base

A Llama of {parameters:,} parameters, pretrained from nothing on a procedural language, so that every
effect of a QLoRA ablation can be seen in minutes, without a network or a GPU. Its data and weights
are made by this repository: `python -m pretraining.pretrain` writes this folder, and
`python -m pretraining.pretrain --check` retraces the first steps of the recorded loss curve.

## Architecture

Hidden size 128, 6 layers, feed-forward 384, 4 query heads and 2 key-value heads of 32, tied
embeddings, a byte-level BPE of 1024 tokens in which digits stand alone, a context of 256 tokens
(rotary positions up to 512 are configured; none past 256 was trained). bfloat16 safetensors.

## Data

Generated from a seed by `harness/embedded/corpus.py`: lists to copy, reverse, sort, count and edit,
sums and differences below 100, comparisons, lookups in a list given in the prompt, spelling, stories
whose people and things stay consistent, and questions about them. A document is BOS, a prompt, a
newline, the response, EOS; or BOS, a story, EOS. CRC-32 of the prompt decides whether a text belongs
to pretraining, to the held-out data or to a split of the fine-tuning tasks, so no prompt is in two.

## Recipe

{steps:,} steps of {tokens_per_step:,} positions, {tokens:,} tokens in all (padding and BOS left out),
Muon at {matrix_lr} for the matrices of the blocks, AdamW at {embedding_lr} (beta 0.9 and {beta2}) for
the embedding and the norms, weight decay {weight_decay}, {warmup} steps of warm-up, linear decay to
zero over the last {decay:.0%} of the steps, clipping at {clip}, bfloat16 autocast, seed {seed}.
Prompt tokens weigh {prompt_weight} in the training loss, since their random words cannot be
predicted. Seven steps of eight read each document alone in rows of 128 tokens; the eighth reads rows
of 256 without that mask. It took {minutes:.0f} minutes on two CPU cores that other work shared.

## Held-out loss

Nats per token, each document read alone, with float32 weights while training:

| step | all | prompt | response | story |
|---:|---:|---:|---:|---:|
{curve}
| the bfloat16 weights here | {final} |

Perplexity over all tokens {perplexity:.3f}, over response tokens {response_perplexity:.3f}. Most of
the loss on prompts is the choice of random words. Every point is in `loss_curve.json`.

## What it can do

Exact match of the greedy response on {pairs} held-out prompts per skill, with the 95 % Wilson
interval (`python -m pretraining.measure`):

| skill | exact match | interval |
|---|---:|---:|
{scores}

## What it cannot do

It knows about 440 words and nothing of the world. It speaks no language but that of its corpus: text
outside it is tokenized without loss but continued with noise. A token that the corpus never shows
cannot be taught by LoRA: the output embedding is tied and frozen, and such tokens came out of the
pretraining with equal embeddings. Lists beyond nine items, numbers beyond 198 and stories beyond
seven events were not trained.

{weak}
"""


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share observed in `count` trials (Wilson, 1927)."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale


def render_card(record: dict[str, Any], num_parameters: int, tokens_per_row: int) -> str:
    """The card as Markdown; every measured number in it comes from `record`."""
    recipe = record["recipe"]
    scores, pairs = record["exact_match"], record["pairs_per_skill"]
    final = record["held_out_final"]
    weak = [skill for skill, score in scores.items() if score < WORKED_SCORE]
    return _CARD.format(
        parameters=num_parameters,
        steps=recipe["steps"],
        tokens_per_step=recipe["batch_rows"] * tokens_per_row,
        tokens=record["tokens_seen"],
        beta2=recipe["beta2"],
        weight_decay=recipe["weight_decay"],
        matrix_lr=recipe["matrix_lr"],
        embedding_lr=recipe["embedding_lr"],
        warmup=recipe["warmup_steps"],
        decay=recipe["decay_fraction"],
        clip=recipe["max_grad_norm"],
        seed=recipe["seed"],
        prompt_weight=recipe["prompt_loss_weight"],
        minutes=record["seconds"] / 60,
        curve="\n".join(_curve_row(step, losses) for step, losses in _thinned(record["held_out"])),
        final=_losses(final),
        perplexity=math.exp(final["all"]),
        response_perplexity=math.exp(final["response"]),
        pairs=pairs,
        scores="\n".join(_score_row(skill, score, pairs) for skill, score in scores.items()),
        weak=f"Below {WORKED_SCORE:.0%} on held-out prompts: {', '.join(weak)}." if weak else "",
    )


def _thinned(points: list[Any]) -> list[Any]:
    """About a dozen of the points, evenly spaced, with the last one."""
    stride = max(1, len(points) // _CURVE_ROWS)
    return points[::-1][::stride][::-1]


def _losses(losses: dict[str, float]) -> str:
    return " | ".join(f"{losses[kind]:.4f}" for kind in ("all", "prompt", "response", "story"))


def _curve_row(step: int, losses: dict[str, float]) -> str:
    return f"| {step:,} | {_losses(losses)} |"


def _score_row(skill: str, score: float, pairs: int) -> str:
    low, high = wilson_interval(score, pairs)
    return f"| {skill} | {score:.3f} | {low:.3f}-{high:.3f} |"
