"""Batched decoding. Shape suffixes: B rows of a batch, P positions of the padded prompt, G new."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness.engine.cuda.decoding import DecodingSize
from harness.errors import RequestError
from harness.evals.context import context_length
from harness.evals.copies import Copies, QuickCopies
from harness.evals.decoding import Sampling, SideBySideDecoding, TextStops

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CACHE_BYTES = 2**28
"""Keys and values that copies may keep together, 256 MiB; one copy may always keep its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Answers in the order of their prompts."""

    texts: list[str]
    """Decoded without the token that ended the answer and without special tokens."""
    num_new_tokens: list[int]
    """Tokens of each answer, the one that ended it included."""
    num_cut_prompts: int
    """Prompts whose start was left out, because they did not fit the model's context with an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are generated."""

    batch_size: int
    max_new_tokens: int
    extra_stop_ids: Sequence[int] = ()
    """Stop tokens besides the tokenizer's EOS and those of the model's own generation settings."""
    text_stops: TextStops | None = None
    """Texts that end an answer; it may go on behind them where that is quicker."""
    sampling: Sampling | None = None
    """None: the most likely tokens."""
    tell: Callable[[int, int, int], None] | None = None
    """Called with copy, prompt and token as each is chosen, but those that end an answer."""


@torch.no_grad()
def generate_copies(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    device: torch.device,
    copies: Copies,
) -> list[Generated]:
    """Continue each prompt, by every copy, token by token until a stop token or the limit.

    Nothing else of the model's own settings (penalties, sampling) is used. Prompts of similar length share
    a batch and are padded on the left; copies share it too, each with the batch that it would have alone.
    `model` is in evaluation mode.

    Raises:
        RequestError: `max_new_tokens` leaves no room for a prompt in the model's context.
    """
    kept, num_cut = _fitted(model, prompts, decoding.max_new_tokens)
    stop_ids = _stop_ids(model, tokenizer, decoding.extra_stop_ids)
    pad_id = _padding_id(tokenizer, stop_ids)
    order = sorted(range(len(kept)), key=lambda index: len(kept[index]))
    answers: list[list[list[int]]] = [[[] for _ in kept] for _ in range(copies.count)]
    with _greedy(model, decoding.max_new_tokens, pad_id) as settings:

        def by_model(chosen: list[int]) -> Iterator[tuple[int, list[list[int]]]]:
            inputs = _left_padded([kept[index] for index in chosen], pad_id, device)
            positions = len(chosen) * (inputs["input_ids"].shape[1] + decoding.max_new_tokens)
            for some in copies.parts(_copies_at_once(model, positions)):
                repeated = {key: value.repeat(len(some), 1) for key, value in inputs.items()}
                decode = SideBySideDecoding(
                    copies,
                    some,
                    len(chosen),
                    stop_ids,
                    chosen,
                    decoding.sampling,
                    decoding.tell,
                    decoding.text_stops,
                )
                joint_BG = model.generate(
                    **repeated, generation_config=settings, custom_generate=decode
                )
                for copy, new_BG in zip(some, joint_BG.split(len(chosen)), strict=True):
                    yield copy, new_BG.tolist()

        def by_quick(
            quick: QuickCopies, chosen: list[int]
        ) -> Iterator[tuple[int, list[list[int]]]]:
            size = DecodingSize(
                rows=min(decoding.batch_size, len(kept)),
                length=max(map(len, kept)) + decoding.max_new_tokens,
                new_tokens=decoding.max_new_tokens,
            )
            batch, stops = [kept[index] for index in chosen], sorted(stop_ids)
            for some in copies.parts(quick.at_once(size)):
                found = quick.answers(some, batch, size, stops)
                yield from zip(some, found, strict=True)

        is_greedy = decoding.sampling is None and decoding.tell is None
        continued = by_model
        if copies.quick is not None and is_greedy:
            continued = partial(by_quick, copies.quick)
        for start in range(0, len(order), decoding.batch_size):
            chosen = order[start : start + decoding.batch_size]
            for copy, new in continued(chosen):
                for index, row in zip(chosen, new, strict=True):
                    answers[copy][index] = _until_stop(row, stop_ids)
    return [_decoded(tokenizer, of_copy, stop_ids, num_cut) for of_copy in answers]


def _copies_at_once(model: Any, positions: int) -> int:
    """Return how many batches of so many positions may be decoded side by side.

    Decoding is bound by the number of steps, so many is good; the cache of keys and values (at most twice
    the hidden size for each layer and position, in 4 bytes) sets the bound.
    """
    config = model.config.get_text_config()
    cache_bytes = 2 * 4 * config.hidden_size * config.num_hidden_layers * positions
    return max(1, _CACHE_BYTES // cache_bytes)


def _decoded(
    tokenizer: "PreTrainedTokenizerBase",
    answers: list[list[int]],
    stop_ids: frozenset[int],
    num_cut: int,
) -> Generated:
    said = [answer[:-1] if answer and answer[-1] in stop_ids else answer for answer in answers]
    return Generated(
        texts=tokenizer.batch_decode(said, skip_special_tokens=True),  # pyright: ignore[reportArgumentType]
        num_new_tokens=[len(answer) for answer in answers],
        num_cut_prompts=num_cut,
    )


def _fitted(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """Return the prompts that fit the context, too long ones from their end, and how many those were."""
    context = context_length(model)
    if context is None:
        return [list(prompt) for prompt in prompts], 0
    room = context - max_new_tokens
    if room < 1:
        raise RequestError(
            f"eval.max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{context} tokens; give at most {context - 1}"
        )
    return [list(prompt[-room:]) for prompt in prompts], sum(len(p) > room for p in prompts)


def _stop_ids(
    model: Any, tokenizer: "PreTrainedTokenizerBase", extra: Sequence[int]
) -> frozenset[int]:
    own = model.generation_config.eos_token_id
    own_ids = own if isinstance(own, list) else [own]
    given = (*own_ids, tokenizer.eos_token_id, *extra)
    return frozenset(token for token in given if isinstance(token, int))


def _padding_id(tokenizer: "PreTrainedTokenizerBase", stop_ids: frozenset[int]) -> int:
    """Return any token: the attention mask hides it before a prompt, `_until_stop` after an answer."""
    given = tokenizer.pad_token_id
    return given if isinstance(given, int) else min(stop_ids, default=0)


@contextmanager
def _greedy(model: Any, max_new_tokens: int, pad_id: int) -> Iterator[Any]:
    """Give plain greedy settings, with the model's own out of the way: `generate` would merge them in."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
        )
    finally:
        model.generation_config = own


def _left_padded(
    prompts: list[list[int]], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return input_ids [B, P] and attention_mask [B, P] of prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Return the tokens up to and with the first stop token; what follows it is padding."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens) - 1)
    return tokens[: end + 1]
