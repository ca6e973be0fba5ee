"""The decoding loop for copies side by side: a copy whose answers are complete leaves the batch.

transformers prepares and owns inputs, masks and cache; this is its loop, which otherwise would go on with
every copy until the slowest has ended. Shape suffixes: B rows, P positions of the prompt, G new tokens, V
vocabulary.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from harness.evals.copies import Copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; an answer depends on nothing but its own logits, the seed and its number."""

    temperature: float
    """Above 0: what logits are divided by."""
    top_p: float = 1.0
    """Share of the probability that the likeliest tokens, which are drawn from, have together."""
    seed: int = 0

    def generator(self, number: int) -> torch.Generator:
        """Return the generator of the answer to the prompt of this number."""
        digest = hashlib.sha256(f"answer/{self.seed}/{number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def draw(self, logits_V: torch.Tensor, generator: torch.Generator) -> int:
        """Return the next token of one answer."""
        share_V = (logits_V.double().cpu() / self.temperature).softmax(dim=0)
        share_V, token_V = share_V.sort(descending=True, stable=True)
        share_V[share_V.cumsum(dim=0) - share_V >= self.top_p] = 0  # the first always stays
        return int(token_V[torch.multinomial(share_V, 1, generator=generator)])


@dataclass(frozen=True, slots=True)
class TextStops:
    """Texts that end an answer, whatever the tokens that they come in."""

    texts: tuple[str, ...]
    tokenizer: Any
    window: int
    """Newest tokens that a text can have ended in: each but special ones has a byte or more."""

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any) -> "TextStops | None":
        """Return the stops; None for no text."""
        kept = tuple(text for text in texts if text)
        longest = max((len(text.encode()) for text in kept), default=0)
        return cls(kept, tokenizer, longest + 2) if kept else None

    def reached(self, newest: Sequence[int]) -> bool:
        """Whether one of the texts is in the newest tokens."""
        text = self.tokenizer.decode(newest, skip_special_tokens=True)
        return any(stop in text for stop in self.texts)


@dataclass(frozen=True, slots=True)
class SideBySideDecoding:
    """What `generate(custom_generate=…)` calls for a batch of `rows` prompts, once for each chosen copy."""

    copies: Copies
    chosen: Sequence[int]
    rows: int
    stop_ids: frozenset[int]
    numbers: Sequence[int] = ()
    """Number of each row's prompt, where something is drawn or told."""
    sampling: Sampling | None = None
    """None: the most likely token."""
    tell: Callable[[int, int, int], None] | None = None
    """Called with copy, prompt and token as each is chosen."""
    text_stops: TextStops | None = None
    """Texts that end an answer."""

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **state: Any,
    ) -> torch.Tensor:
        """Return the answers [B, G] alone; what follows a stop token is anything."""
        pad_id, most = generation_config.pad_token_id, generation_config.max_new_tokens
        new_BG = input_ids.new_full((len(input_ids), most), pad_id)
        stop_ids = torch.tensor(sorted(self.stop_ids), device=input_ids.device)
        open_B = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        left, place_B = list(self.chosen), torch.arange(len(input_ids), device=input_ids.device)
        step_input: dict[str, Any] = {"is_first_iteration": True}
        draws = self.sampling
        generators = [draws.generator(n) for _ in left for n in self.numbers] if draws else []
        with ExitStack() as sharing:
            sharing.enter_context(self.copies.sharing(left, self.rows))
            for index in range(most):
                inputs = model.prepare_inputs_for_generation(input_ids, **step_input, **state)
                outputs = model(**inputs, return_dict=True)
                state = model._update_model_kwargs_for_generation(outputs, state)
                logits_BV = outputs.logits[:, -1].float()
                token_B = self._chosen(logits_BV, place_B, generators)
                new_BG[place_B, index] = token_B
                self._tell(token_B, place_B, open_B)
                open_B &= ~torch.isin(token_B, stop_ids)
                self._close(open_B, new_BG[place_B, : index + 1])
                going = open_B.view(len(left), self.rows).any(dim=1).tolist()
                if not any(going):
                    break
                input_ids, step_input = token_B.unsqueeze(1), {"next_sequence_length": 1}
                if not all(going) and _keep_rows(state, kept_B := _rows_of(going, self.rows)):
                    kept_B = kept_B.to(input_ids.device)
                    input_ids, open_B, place_B = input_ids[kept_B], open_B[kept_B], place_B[kept_B]
                    left = [copy for copy, goes in zip(left, going, strict=True) if goes]
                    sharing.close()
                    sharing.enter_context(self.copies.sharing(left, self.rows))
        return new_BG

    def _chosen(
        self, logits_BV: torch.Tensor, place_B: torch.Tensor, generators: list[torch.Generator]
    ) -> torch.Tensor:
        if self.sampling is None:
            return logits_BV.argmax(dim=-1)
        drawn = [
            self.sampling.draw(logits_V, generators[place])
            for logits_V, place in zip(logits_BV, place_B.tolist(), strict=True)
        ]
        return torch.tensor(drawn, device=logits_BV.device)

    def _close(self, open_B: torch.Tensor, new_BG: torch.Tensor) -> None:
        """Close the answers that have come to one of the texts."""
        stops = self.text_stops
        if stops is None:
            return
        for row, newest in enumerate(new_BG[:, -stops.window :].tolist()):
            if open_B[row] and stops.reached(newest):
                open_B[row] = False

    def _tell(self, token_B: torch.Tensor, place_B: torch.Tensor, open_B: torch.Tensor) -> None:
        if self.tell is None:
            return
        chosen = zip(token_B.tolist(), place_B.tolist(), open_B.tolist(), strict=True)
        for token, place, is_open in chosen:
            copy, row = divmod(place, self.rows)
            if is_open and token not in self.stop_ids:
                self.tell(self.chosen[copy], self.numbers[row], token)


def _rows_of(going: Sequence[bool], rows: int) -> torch.Tensor:
    """Return the indices of the rows of the copies that go on."""
    return torch.arange(len(going) * rows).view(-1, rows)[torch.tensor(going)].flatten()


def _keep_rows(state: dict[str, Any], kept_B: torch.Tensor) -> bool:
    """Drop the other rows of everything that is carried on; False for a cache that cannot."""
    cache: Any = state.get("past_key_values")
    if not hasattr(cache, "batch_select_indices"):
        return False
    cache.batch_select_indices(kept_B)
    for name in ("attention_mask", "position_ids"):
        if state.get(name) is not None:
            state[name] = state[name][kept_B]
    return True
