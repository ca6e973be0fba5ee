"""Pretrains the embedded base and writes `harness/embedded/model/`.

    python -m pretraining.pretrain            the whole pretraining, on two cores
    python -m pretraining.pretrain --check    retrace the first steps of the recorded curve

One loop; Muon for the matrices of the blocks, AdamW for the embedding and the norms; a warm-up, a
plateau and a linear decay to zero; packed rows in an order fixed by the seed. It resumes from its
last checkpoint, which is renamed into place. Shapes: R rows, T tokens of a row.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.optim import Optimizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.embedded.corpus import Part, documents
from harness.embedded.tokenizer import (
    BOS_ID,
    CONTEXT_TOKENS,
    EOS_ID,
    PAD_ID,
    load_tokenizer,
    train_tokenizer,
)
from pretraining.card import render_card
from pretraining.measure import (
    MODEL_FOLDER,
    PAIRS_PER_SKILL,
    exact_match_per_skill,
    held_out_losses,
    held_out_rows,
    load_model,
    token_losses,
)
from pretraining.rows import ROW_TOKENS, PackedRows, TokenKind, pack

CURVE_FILE = "loss_curve.json"
LONG_EVERY = 8
CHECK_STEPS = 20
# Another processor multiplies bfloat16 matrices in another order. Twenty warm-up steps spread that
# to about 0.005 nats; a wrong corpus, tokenizer, seed or recipe moves the loss by more than 0.05.
CHECK_TOLERANCE_NATS = 0.02


@dataclass(kw_only=True, slots=True)
class Recipe:
    """Everything that decides the result of the pretraining."""

    seed: int = 0
    """Seed of the corpus, the tokenizer and the initial weights."""
    steps: int = 8000
    """Optimizer steps."""
    batch_rows: int = 32
    """Rows of 128 tokens per step; every eighth step has half as many rows of 256 tokens."""
    matrix_lr: float = 5e-3
    """Muon's learning rate after warm-up, in the scaling that matches AdamW's update size."""
    embedding_lr: float = 3e-3
    """AdamW's learning rate after warm-up, for the tied embedding and the norms."""
    warmup_steps: int = 200
    """Steps of linear warm-up from zero."""
    decay_fraction: float = 0.5
    """The last part of the steps, in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.1
    """Decay of the matrices and of the embedding; norms are not decayed."""
    beta2: float = 0.98
    """AdamW's second moment decay; the first is 0.9."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    prompt_loss_weight: float = 0.3
    """Weight of prompt tokens in the training loss: their random words cannot be predicted."""


@dataclass(kw_only=True, slots=True)
class Curve:
    """What the pretraining recorded; losses in nats per token, all with the step they follow."""

    recipe: Recipe
    first_losses: list[float] = field(default_factory=list)
    """Training loss of each of the first `CHECK_STEPS` steps."""
    train: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean training loss since the entry before)."""
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, held-out losses by token kind)."""
    tokens_seen: int = 0
    """Tokens trained on, without padding and BOS."""
    seconds: float = 0.0
    """Wall-clock seconds in the loop, over all resumptions."""


def build_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialized model: Llama, about 1.3 million parameters, tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = LlamaForCausalLM(config)
    # Rows are short and heads small: plain attention takes two thirds of SDPA's time on a CPU.
    model.set_attn_implementation("eager")
    return model


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[Optimizer, ...]:
    """Muon for the blocks' matrices (Jordan et al., 2024), AdamW for the rest.

    In short trials Muon reached AdamW's loss on responses in half the steps.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    norms = [p for p in model.parameters() if p.ndim < 2]
    decay = recipe.weight_decay
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": [embedding], "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}],
        lr=recipe.embedding_lr,
        betas=(0.9, recipe.beta2),
        fused=True,
    )
    return muon, adamw


def schedule(recipe: Recipe, step: int) -> float:
    """The share of the peak learning rate: linear warm-up, plateau, linear fall to zero.

    `step` counts from zero.
    """
    decay_steps = recipe.decay_fraction * recipe.steps
    warmed = (step + 1) / max(1, recipe.warmup_steps)
    left = (recipe.steps - step) / max(1.0, decay_steps)
    return min(1.0, warmed, left)


def is_long(step: int) -> bool:
    """Whether a step's rows fill the context, each document read after those before it.

    The other steps mask the documents from each other, as a prompt stands alone when the model is
    used; but the longest document is far shorter than the context, which these steps train.
    """
    return step % LONG_EVERY == LONG_EVERY - 1


def step_batch(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, step: int) -> PackedRows:
    """The batch of a step; it depends on the recipe and the step's number only."""
    source = documents(Part.PRETRAIN, seed=recipe.seed, shard=step)
    row_tokens = CONTEXT_TOKENS if is_long(step) else ROW_TOKENS
    num_rows = recipe.batch_rows * ROW_TOKENS // row_tokens
    return pack(source, tokenizer, num_rows=num_rows, row_tokens=row_tokens)


def training_loss(
    model: LlamaForCausalLM, batch: PackedRows, recipe: Recipe, step: int
) -> torch.Tensor:
    """The weighted mean loss in nats over the batch's scored tokens."""
    kinds = batch.kinds_RT[:, 1:]
    weights = (kinds != TokenKind.UNSCORED).float()
    weights[kinds == TokenKind.PROMPT] = recipe.prompt_loss_weight
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(model, batch, alone=not is_long(step))
    return (losses * weights).sum() / weights.sum()


def train_step(
    model: LlamaForCausalLM,
    optimizers: tuple[Optimizer, ...],
    batch: PackedRows,
    recipe: Recipe,
    step: int,
) -> float:
    """One forward, backward and update; returns the training loss in nats."""
    model.train()
    for optimizer, peak in zip(optimizers, (recipe.matrix_lr, recipe.embedding_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(recipe, step)
    loss = training_loss(model, batch, recipe, step)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_checkpoint(
    file: Path, model: LlamaForCausalLM, optimizers: tuple[Optimizer, ...], step: int, curve: Curve
) -> None:
    """Write the state after `step` steps beside `file`, then rename it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "curve": asdict(curve),
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def resume(
    file: Path, model: LlamaForCausalLM, optimizers: tuple[Optimizer, ...], recipe: Recipe
) -> tuple[int, Curve]:
    """The step and curve to go on from, with the states loaded; (0, empty) without a checkpoint.

    Raises ValueError when the checkpoint was made by another recipe.
    """
    if not file.exists():
        return 0, Curve(recipe=recipe)
    state = torch.load(file, weights_only=True)
    recorded = state["curve"].pop("recipe")
    if recorded != asdict(recipe):
        raise ValueError(
            f"{file} was made with {recorded}, asked was {asdict(recipe)}; "
            "remove the file or choose another --work-dir"
        )
    model.load_state_dict(state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    return state["step"], Curve(recipe=recipe, **state["curve"])


def pretrain(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    held_out: PackedRows,
    *,
    log_every: int = 250,
) -> tuple[LlamaForCausalLM, Curve]:
    """Train for `recipe.steps` steps, or go on where the checkpoint stopped.

    Every `log_every` steps, and after the last, the losses are recorded and the state is saved.
    """
    model = build_model(recipe.seed, tokenizer)
    optimizers = build_optimizers(model, recipe)
    start, curve = resume(checkpoint, model, optimizers, recipe)
    recent: list[float] = []
    clock = time.monotonic()
    for step in range(start, recipe.steps):
        batch = step_batch(recipe, tokenizer, step)
        loss = train_step(model, optimizers, batch, recipe, step)
        recent.append(loss)
        if step < CHECK_STEPS:
            curve.first_losses.append(loss)
        curve.tokens_seen += int((batch.kinds_RT != TokenKind.UNSCORED).sum())
        if (step + 1) % log_every and step + 1 < recipe.steps:
            continue
        curve.train.append((step + 1, sum(recent) / len(recent)))
        curve.held_out.append((step + 1, held_out_losses(model, held_out)))
        recent.clear()
        curve.seconds += time.monotonic() - clock
        clock = time.monotonic()
        save_checkpoint(checkpoint, model, optimizers, step + 1, curve)
        print(_progress(curve), flush=True)
    return model, curve


def _progress(curve: Curve) -> str:
    step, losses = curve.held_out[-1]
    named = " ".join(f"{kind} {loss:.4f}" for kind, loss in losses.items())
    return (
        f"step {step}/{curve.recipe.steps}  train {curve.train[-1][1]:.4f}  held-out {named}  "
        f"tokens {curve.tokens_seen:,}  {curve.seconds:.0f} s"
    )


def publish(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, curve: Curve, folder: Path
) -> None:
    """Write the whole model folder beside `folder`, measure what was written, then swap it in.

    The recorded final losses are those of the bfloat16 weights on disk, computed in float32.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        do_sample=False,
    )
    model.bfloat16().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)  # It is written readable to its owner alone.
    tokenizer.save_pretrained(fresh)
    saved = load_model(fresh)
    final = held_out_losses(saved, held_out_rows(tokenizer))
    scores = exact_match_per_skill(saved, tokenizer)
    record = asdict(curve) | {
        "held_out_final": final,
        "exact_match": scores,
        "pairs_per_skill": PAIRS_PER_SKILL,
    }
    (fresh / CURVE_FILE).write_text(json.dumps(record, indent=1) + "\n")
    (fresh / "README.md").write_text(render_card(record, saved.num_parameters(), ROW_TOKENS))
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def check(folder: Path, steps: int) -> list[str]:
    """Retrace the first `steps` steps of the recorded curve; returns what differs, if anything."""
    record = json.loads((folder / CURVE_FILE).read_text())
    recipe = Recipe(**record["recipe"])
    recorded = record["first_losses"]
    if not 1 <= steps <= len(recorded):
        raise ValueError(f"steps={steps} cannot be checked; the curve records {len(recorded)}")
    tokenizer = train_tokenizer(recipe.seed)
    if tokenizer.get_vocab() != load_tokenizer(folder).get_vocab():
        return ["the tokenizer trained now differs from the recorded one"]
    model = build_model(recipe.seed, tokenizer)
    optimizers = build_optimizers(model, recipe)
    differences = []
    for step in range(steps):
        batch = step_batch(recipe, tokenizer, step)
        loss = train_step(model, optimizers, batch, recipe, step)
        if not abs(loss - recorded[step]) <= CHECK_TOLERANCE_NATS:
            differences.append(f"step {step + 1}: loss {loss:.4f}, recorded {recorded[step]:.4f}")
    return differences


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="retrace the recorded curve's start")
    parser.add_argument("--check-steps", type=int, default=CHECK_STEPS, help="steps to retrace")
    parser.add_argument("--model-dir", type=Path, default=MODEL_FOLDER, help="where the model goes")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("out/embedded-pretrain"), help="for the checkpoint"
    )
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimizer steps")
    return parser.parse_args()


def main() -> int:
    """Pretrain, or check; returns the exit code."""
    arguments = _arguments()
    if arguments.check:
        differences = check(arguments.model_dir, arguments.check_steps)
        print("\n".join(differences) or f"{arguments.check_steps} steps retraced")
        return 1 if differences else 0
    recipe = Recipe(steps=arguments.steps)
    tokenizer = train_tokenizer(recipe.seed)
    checkpoint = arguments.work_dir / "checkpoint.pt"
    model, curve = pretrain(recipe, tokenizer, checkpoint, held_out_rows(tokenizer))
    publish(model, tokenizer, curve, arguments.model_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
