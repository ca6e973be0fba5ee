"""The decoding loop for copies side by side: a copy whose answers are complete leaves the batch.

transformers prepares and owns inputs, masks and cache; this is its greedy loop, which otherwise would go on
with every copy until the slowest has ended. Shape suffixes: B rows, P positions of the prompt, G new tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from harness.evals.copies import Copies


@dataclass(frozen=True, slots=True)
class SideBySideDecoding:
    """What `generate(custom_generate=…)` calls for a batch of `rows` prompts, once for each chosen copy."""

    copies: Copies
    chosen: Sequence[int]
    rows: int
    stop_ids: frozenset[int]

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
        with ExitStack() as sharing:
            sharing.enter_context(self.copies.sharing(left, self.rows))
            for index in range(most):
                inputs = model.prepare_inputs_for_generation(input_ids, **step_input, **state)
                outputs = model(**inputs, return_dict=True)
                state = model._update_model_kwargs_for_generation(outputs, state)
                token_B = outputs.logits[:, -1].float().argmax(dim=-1)
                new_BG[place_B, index] = token_B
                open_B &= ~torch.isin(token_B, stop_ids)
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
