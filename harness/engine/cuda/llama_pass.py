"""The pass itself, forward and backward, over rows laid end to end: models of the Llama family.

Derivatives are written out: nothing goes through autograd, so that a pass is a fixed list of kernels,
keeps what it says, and can be captured. Llama, Mistral, Qwen 2 and 3, Phi 3, Gemma and Gemma 3 are one
family: a norm before attention and before the feed-forward (in Gemma 3 after them as well), rotated queries
and keys (normed by head in Qwen 3 and Gemma 3; by two tables in Gemma 3), a gated feed-forward.

Shape suffixes: N positions, H width of the residual stream, W queries, keys and values side by side, F
feed-forward, R rank (of all layers of a group), I inputs, O outputs, M positions that carry loss, V
vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F

from harness.engine.cuda import ops
from harness.engine.cuda.attention import Attended, Heads, Sequences, attend, attend_backward
from harness.engine.cuda.ops import Activation, Dropout, Norm, Rows, SeatProducts
from harness.engine.cuda.seats import SeatLayout, Seats
from harness.engine.lora_math import FOLDED, add_gradient_b, add_update

KNOWN = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
)
"""transformers' classes whose forward this file repeats."""
_LOGIT_ELEMENTS = 2**27
"""Logits at a time: 256 MiB in 16 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class PassInput:
    """What a pass is given, on the device; its tensors may be overwritten between passes."""

    ids_N: torch.Tensor
    positions_N: torch.Tensor
    """Of each token in its sequence."""
    sequences: Sequences
    rows: Rows
    dropout: Dropout | None
    loss_positions_M: torch.Tensor
    targets_M: torch.Tensor
    weights_M: torch.Tensor
    """What each position's loss is multiplied by, its run's loss scale included; 0 where it only fills."""
    loss_seats_M: torch.Tensor
    """Whose each of these positions is; -1 where it only fills."""
    kept_N1: torch.Tensor | None = None
    """Of an evaluation: what A x is multiplied by, since the seats' B makes up for what dropout drops."""


Turned = dict[str | None, tuple[torch.Tensor, torch.Tensor]]
"""Cosines and sines of a pass's positions, by the kind of layer; None: of every layer."""
See = Callable[[torch.Tensor, Heads], Attended]
"""Attention of one block, given queries, keys and values side by side."""
LayerSee = Callable[[int, torch.Tensor, Heads], Attended]


class LinearGroup:
    """Frozen layers that see one input, with the adapters of all seats on them."""

    def __init__(self, layers: Sequence[Any], indices: Sequence[int]) -> None:
        """`layers`: modules of the base; `indices`: theirs in the model, which name dropout masks."""
        self.indices = tuple(indices)
        self.outputs = tuple(layer.out_features for layer in layers)
        self.inputs: int = layers[0].in_features
        self._layers = tuple(layers)
        biases = [layer.bias for layer in layers]
        known = next((bias for bias in biases if bias is not None), None)
        self._bias_O: torch.Tensor | None = None
        if known is not None:
            whole = zip(biases, self.outputs, strict=True)
            self._bias_O = torch.cat(
                [known.new_zeros(n) if bias is None else bias.detach() for bias, n in whole]
            )

    def _slices(self) -> list[slice]:
        starts = [sum(self.outputs[:n]) for n in range(len(self.outputs))]
        return [slice(s, s + width) for s, width in zip(starts, self.outputs, strict=True)]

    def _dense(self, like: torch.Tensor) -> torch.Tensor:
        """Return the decoded weights, one above the other, [O, I]."""
        if len(self._layers) == 1 and self._layers[0].weight.dtype is like.dtype:
            return self._layers[0].weight.detach()
        dense_OI = torch.empty(sum(self.outputs), self.inputs, dtype=like.dtype, device=like.device)
        for layer, part in zip(self._layers, self._slices(), strict=True):
            ops.decode_into(layer, dense_OI[part])
        return dense_OI

    def forward(
        self, x_NI: torch.Tensor, seats: Seats, given: PassInput
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the layers' outputs side by side, [N, O], and A x of all adapters, for backward."""
        y_NO = F.linear(x_NI, self._dense(x_NI), self._bias_O)
        place = seats.layout.places.get(self.indices)
        if place is None:
            return y_NO, None
        a_SRI = seats.layout.a(seats.computed_SP, place)
        products = SeatProducts(given.rows)
        h_NR = x_NI.new_empty(len(x_NI), a_SRI.shape[1])
        if given.dropout is None:
            products.product(x_NI, a_SRI, h_NR)
        rank = seats.layout.rank
        for number, columns in enumerate(self._slices()):
            own = slice(number * rank, (number + 1) * rank)
            if given.dropout is not None:
                kept = ops.dropped(x_NI, self.indices[number], given.dropout, given.rows)
                products.product(kept, a_SRI[:, own], h_NR[:, own])
            if given.kept_N1 is not None:
                h_NR[:, own].mul_(given.kept_N1)
            b_SOR = seats.layout.b(seats.computed_SP, place, number)
            add_update(products, b_SOR, FOLDED, h_NR[:, own], y_NO[:, columns])
        return y_NO, h_NR

    def backward(
        self,
        grad_NO: torch.Tensor,
        x_NI: torch.Tensor,
        h_NR: torch.Tensor | None,
        seats: Seats,
        given: PassInput,
        *,
        grad_x_wanted: bool = True,
    ) -> torch.Tensor | None:
        """Add up the adapters' gradients in their seats; return that of x, if it is wanted."""
        grad_x = grad_NO @ self._dense(grad_NO) if grad_x_wanted else None
        if h_NR is None:
            return grad_x
        place = seats.layout.places[self.indices]
        a_SRI = seats.layout.a(seats.computed_SP, place)
        grad_a_SRI = seats.layout.a(seats.gradients_SP, place)
        products = SeatProducts(given.rows)
        grad_h_NR = torch.empty_like(h_NR)
        rank = seats.layout.rank
        for number, columns in enumerate(self._slices()):
            own = slice(number * rank, (number + 1) * rank)
            b_SOR = seats.layout.b(seats.computed_SP, place, number)
            grad_b_SOR = seats.layout.b(seats.gradients_SP, place, number)
            narrow = h_NR[:, own], grad_h_NR[:, own]
            add_gradient_b(products, b_SOR, grad_b_SOR, FOLDED, grad_NO[:, columns], *narrow)
            if given.dropout is None:
                continue
            layer = self.indices[number]
            kept = ops.dropped(x_NI, layer, given.dropout, given.rows)
            products.add_outer_(grad_a_SRI[:, own], grad_h_NR[:, own], kept)
            if grad_x is not None:
                through = products.product(grad_h_NR[:, own], a_SRI[:, own].mT)
                ops.dropped(through, layer, given.dropout, given.rows, grad_x)
        if given.dropout is None:
            products.add_outer_(grad_a_SRI, grad_h_NR, x_NI)
            if grad_x is not None:
                products.add_product_(grad_x, grad_h_NR, a_SRI.mT)
        return grad_x


@dataclass(slots=True, eq=False)
class _Kept:
    """What a block keeps for its backward pass."""

    x_NH: torch.Tensor
    scale_N: torch.Tensor
    qkv_NW: torch.Tensor
    heads_before: list[tuple[torch.Tensor, torch.Tensor]]
    """Qwen 3: queries and keys before their norm, and its scales."""
    attended: Attended
    attended_before: tuple[torch.Tensor, torch.Tensor] | None
    """Gemma 3: what attention adds to the stream before its norm, and the norm's scales; below likewise."""
    middle_NH: torch.Tensor
    second_scale_N: torch.Tensor
    gate_up_NF: torch.Tensor
    out_before: tuple[torch.Tensor, torch.Tensor] | None
    of_qkv: torch.Tensor | None
    of_o: torch.Tensor | None
    of_gate_up: torch.Tensor | None
    of_down: torch.Tensor | None


class Block:
    """One decoder layer."""

    def __init__(
        self,
        module: Any,
        config: Any,
        indices: dict[str, int],
        window: int | None,
        kind: str | None,
    ) -> None:
        """`indices`: of each linear layer in the model, by its own name; `kind`: of its rotations."""
        attention, feed_forward = module.self_attn, module.mlp

        def group(owner: Any, *names: str) -> LinearGroup:
            layers = [getattr(owner, name) for name in names]
            frozen = [getattr(layer, "base_layer", layer) for layer in layers]
            return LinearGroup(frozen, [indices[name] for name in names])

        joint = hasattr(attention, "qkv_proj")
        self.qkv = group(attention, *(["qkv_proj"] if joint else ["q_proj", "k_proj", "v_proj"]))
        self.o = group(attention, "o_proj")
        joint = hasattr(feed_forward, "gate_up_proj")
        self.gate_up = group(
            feed_forward, *(["gate_up_proj"] if joint else ["gate_proj", "up_proj"])
        )
        self.down = group(feed_forward, "down_proj")
        self._activation = activation_of(config)
        self._kind = kind
        self._norm = Norm.of(module.input_layernorm)
        self._second_norm = Norm.of(module.post_attention_layernorm)
        self._norm_after_attention: Norm | None = None
        self._norm_after_all: Norm | None = None
        if hasattr(module, "pre_feedforward_layernorm"):
            self._norm_after_attention = self._second_norm
            self._second_norm = Norm.of(module.pre_feedforward_layernorm)
            self._norm_after_all = Norm.of(module.post_feedforward_layernorm)
        self.heads = heads = Heads(
            query=config.num_attention_heads,
            key=config.num_key_value_heads,
            size=attention.head_dim,
            scale=attention.scaling,
            window=window,
        )
        normed = (("q_norm", 0, heads.query), ("k_norm", heads.query * heads.size, heads.key))
        self._head_norms = [
            (Norm.of(getattr(attention, name)), first, count)
            for name, first, count in normed
            if hasattr(attention, name)
        ]
        """Norms of queries and of keys, with the first column and the number of their heads."""

    @property
    def groups(self) -> list[LinearGroup]:
        """The block's groups, in the model's order."""
        return [self.qkv, self.o, self.gate_up, self.down]

    def forward(
        self,
        x_NH: torch.Tensor,
        added_NH: torch.Tensor | None,
        turned: Turned,
        seats: Seats,
        given: PassInput,
        see: See | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, _Kept]:
        """Return the residual stream after attention, what the feed-forward adds to it, and what is kept.

        `x_NH + added_NH` is the stream before the block; `turned`: cosines and sines of the positions;
        `see`: attention, where it is not that of the pass's own sequences.
        """
        heads = self.heads
        x_NH, n_NH, scale_N = ops.rms_norm(x_NH, added_NH, self._norm)
        qkv_NW, of_qkv = self.qkv.forward(n_NH, seats, given)
        before = [ops.head_norm_(qkv_NW, at, count, norm) for norm, at, count in self._head_norms]
        ops.rotate_(qkv_NW, heads.query + heads.key, *turned[self._kind])
        attended = attend(qkv_NW, heads, given.sequences) if see is None else see(qkv_NW, heads)
        y_NH, of_o = self.o.forward(attended.out_NQD.flatten(1), seats, given)
        y_NH, attended_before = _normed_after(y_NH, self._norm_after_attention)
        middle_NH, n_NH, second_scale_N = ops.rms_norm(y_NH, x_NH, self._second_norm)
        gate_up_NF, of_gate_up = self.gate_up.forward(n_NH, seats, given)
        out_NH, of_down = self.down.forward(ops.gated(gate_up_NF, self._activation), seats, given)
        out_NH, out_before = _normed_after(out_NH, self._norm_after_all)
        kept = _Kept(
            x_NH, scale_N, qkv_NW, before, attended, attended_before, middle_NH, second_scale_N,
            gate_up_NF, out_before, of_qkv, of_o, of_gate_up, of_down,
        )  # fmt: skip
        return middle_NH, out_NH, kept

    def backward(
        self,
        grad_NH: torch.Tensor,
        turned: Turned,
        kept: _Kept,
        seats: Seats,
        given: PassInput,
        *,
        grad_x_wanted: bool,
    ) -> torch.Tensor | None:
        """Return the gradient of the stream before the block from that after it."""
        active_NF = ops.gated(kept.gate_up_NF, self._activation)
        grad_out = _before_norm(grad_NH, kept.out_before, self._norm_after_all)
        grad_a_NF = self.down.backward(grad_out, active_NF, kept.of_down, seats, given)
        assert grad_a_NF is not None
        del active_NF, grad_out
        ops.gated_backward_(kept.gate_up_NF, grad_a_NF, self._activation)
        del grad_a_NF
        second = self._second_norm
        n_NH = ops.rms_norm_again(kept.middle_NH, kept.second_scale_N, second)
        grad_n = self.gate_up.backward(kept.gate_up_NF, n_NH, kept.of_gate_up, seats, given)
        assert grad_n is not None
        grad_NH = ops.rms_norm_backward(
            grad_n, kept.middle_NH, second, kept.second_scale_N, grad_NH
        )
        attended_NX = kept.attended.out_NQD.flatten(1)
        grad_y = _before_norm(grad_NH, kept.attended_before, self._norm_after_attention)
        grad_o = self.o.backward(grad_y, attended_NX, kept.of_o, seats, given)
        del grad_y
        assert grad_o is not None
        grad_qkv = attend_backward(
            grad_o.view_as(kept.attended.out_NQD), kept.qkv_NW, self.heads, given.sequences,
            kept.attended,
        )  # fmt: skip
        num_rotated = self.heads.query + self.heads.key
        ops.rotate_(grad_qkv, num_rotated, *turned[self._kind], back=True)
        head_norms = zip(self._head_norms, kept.heads_before, strict=True)
        for (norm, first, count), (before, scale) in head_norms:
            ops.head_norm_backward_(grad_qkv, first, count, before, norm, scale)
        n_NH = ops.rms_norm_again(kept.x_NH, kept.scale_N, self._norm)
        grad_n = self.qkv.backward(
            grad_qkv, n_NH, kept.of_qkv, seats, given, grad_x_wanted=grad_x_wanted
        )
        if grad_n is None:
            return None
        return ops.rms_norm_backward(grad_n, kept.x_NH, self._norm, kept.scale_N, grad_NH)


def activation_of(config: Any) -> Activation:
    """Return the feed-forward's; raises ValueError for one that is not written out."""
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    found = Activation.named(name)
    if found is None:
        known = ", ".join(each.value for each in Activation)
        raise ValueError(f"the feed-forward's activation is {name}, not one of {known}")
    return found


def _normed_after(
    y_NH: torch.Tensor, norm: Norm | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Return what is added to the stream, normed where the model does that, and what backward needs."""
    if norm is None:
        return y_NH, None
    _, out_NH, scale_N = ops.rms_norm(y_NH, None, norm)
    return out_NH, (y_NH, scale_N)


def _before_norm(
    grad_NH: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None, norm: Norm | None
) -> torch.Tensor:
    """Return the gradient of what `_normed_after` was given."""
    if norm is None or before is None:
        return grad_NH
    y_NH, scale_N = before
    return ops.rms_norm_backward(grad_NH, y_NH, norm, scale_N, None)


class LlamaPass:
    """Forward and backward of one packed micro-step: gradients and losses are added up in the seats."""

    def __init__(self, model: Any, linears: Sequence[str], windows: Sequence[int | None]) -> None:
        """`linears`: full names of the adaptable layers, in the model's order; `windows`: one a block."""
        index = {name: number for number, name in enumerate(linears)}
        self._model = model.model
        self._head_VH: torch.Tensor = model.get_output_embeddings().weight.detach()
        self._norm = Norm.of(self._model.norm)
        config = model.config
        by_kind = "layer_type" in signature(self._model.rotary_emb.forward).parameters
        kinds = config.layer_types if by_kind else [None] * len(self._model.layers)
        self.blocks = []
        for number, module in enumerate(self._model.layers):
            prefix = f"model.layers.{number}."
            inside = {n.rpartition(".")[2]: i for n, i in index.items() if n.startswith(prefix)}
            self.blocks.append(Block(module, config, inside, windows[number], kinds[number]))
        self._tables: Turned = dict.fromkeys(kinds, (torch.empty(0), torch.empty(0)))
        self._all_tables: list[Turned] = []
        """Every one that there was: captured passes read those that they were captured with."""

    def turn_to(self, length: int) -> None:
        """Know the rotations of so many positions; outside of a pass."""
        if len(next(iter(self._tables.values()))[0]) >= length:
            return
        like = self._head_VH.new_empty(1, 1, 1)
        positions = torch.arange(length, device=like.device).unsqueeze(0)
        tables: Turned = {}
        for kind in self._tables:
            of_kind = {} if kind is None else {"layer_type": kind}
            cos, sin = self._model.rotary_emb(like, position_ids=positions, **of_kind)
            tables[kind] = cos[0].contiguous(), sin[0].contiguous()
        self._tables = tables
        self._all_tables.append(tables)

    @property
    def groups(self) -> list[LinearGroup]:
        """All groups of layers with one input, in the model's order."""
        return [group for block in self.blocks for group in block.groups]

    def seat_layout(self, layers: Collection[int], rank: int) -> SeatLayout:
        """Return where adapters of these layers lie in a seat, of this rank at most."""
        adapted = [group for group in self.groups if set(layers).intersection(group.indices)]
        return SeatLayout([(g.indices, g.inputs, g.outputs) for g in adapted], rank)

    @torch.no_grad()
    def run(self, given: PassInput, seats: Seats, *, recompute: bool) -> None:
        """Add the pass's gradients and losses to what the seats hold; `recompute`: keep block inputs only."""
        turned = self._turned(given)
        x_NH = self._model.embed_tokens(given.ids_N)
        added_NH: torch.Tensor | None = None
        first = self._first_adapted(seats)
        kept: list[Any] = []
        for number, block in enumerate(self.blocks):
            before = (x_NH, added_NH)
            x_NH, added_NH, of_block = block.forward(x_NH, added_NH, turned, seats, given)
            if number >= first:
                kept.append(before if recompute else of_block)
            del of_block
        assert added_NH is not None
        grad_NH = self._loss(x_NH, added_NH, given, seats)
        del x_NH, added_NH
        for number in reversed(range(first, len(self.blocks))):
            block, of_block = self.blocks[number], kept.pop()
            if recompute:
                *_, of_block = block.forward(*of_block, turned, seats, given)
            found = block.backward(
                grad_NH, turned, of_block, seats, given, grad_x_wanted=number > first
            )
            del of_block
            if found is not None:
                grad_NH = found

    @torch.no_grad()
    def score(self, given: PassInput, seats: Seats, scores_2M: torch.Tensor) -> None:
        """Write the cross-entropy of each position that carries loss into `scores_2M`, and 1.0 where its most
        likely token is the right one; forward alone."""
        n_MH = self._ends(given, seats)
        no_gradient_M = torch.zeros_like(given.weights_M)
        for part in self._head_parts(len(n_MH)):
            logits, targets_M = n_MH[part] @ self._head_VH.mT, given.targets_M[part]
            scores_2M[1, part] = (logits.argmax(dim=1) == targets_M).float()
            scores_2M[0, part] = ops.token_loss_(logits, targets_M, no_gradient_M[part])
            del logits

    @torch.no_grad()
    def logits(self, given: PassInput, seats: Seats, see: LayerSee) -> torch.Tensor:
        """Return the logits [M, V] at the positions that carry loss; `see`: attention of each block."""
        return self._ends(given, seats, see) @ self._head_VH.mT

    def _ends(self, given: PassInput, seats: Seats, see: LayerSee | None = None) -> torch.Tensor:
        """Return what the head is given at the positions that carry loss, [M, H]; forward alone."""
        turned = self._turned(given)
        seat_N = given.rows.of_positions()
        given = replace(given, kept_N1=seats.kept_S.index_select(0, seat_N).unsqueeze(1))
        x_NH = self._model.embed_tokens(given.ids_N)
        added_NH: torch.Tensor | None = None
        for number, block in enumerate(self.blocks):
            of_block = None if see is None else partial(see, number)
            x_NH, added_NH, kept = block.forward(x_NH, added_NH, turned, seats, given, of_block)
            del kept
        assert added_NH is not None
        at_M = given.loss_positions_M
        ends_MH, added_MH = x_NH.index_select(0, at_M), added_NH.index_select(0, at_M)
        return ops.rms_norm(ends_MH, added_MH, self._norm)[1]

    def _turned(self, given: PassInput) -> Turned:
        """Return cosines and sines of the positions."""
        at_N = given.positions_N
        return {
            kind: (cos_LD.index_select(0, at_N), sin_LD.index_select(0, at_N))
            for kind, (cos_LD, sin_LD) in self._tables.items()
        }

    def _head_parts(self, positions: int) -> Iterator[slice]:
        """Yield parts of so many positions whose logits there is memory for."""
        chunk = max(256, _LOGIT_ELEMENTS // len(self._head_VH))
        for start in range(0, positions, chunk):
            yield slice(start, start + chunk)

    def _first_adapted(self, seats: Seats) -> int:
        """Return the first block with an adapter: before it there are no gradients."""
        adapted = seats.layout.places
        return next(
            number
            for number, block in enumerate(self.blocks)
            if any(group.indices in adapted for group in block.groups)
        )

    def _loss(
        self, x_NH: torch.Tensor, added_NH: torch.Tensor, given: PassInput, seats: Seats
    ) -> torch.Tensor:
        """Add each seat's loss to its own; return the gradient of the stream at the end."""
        at_M = given.loss_positions_M
        x_MH, n_MH, scale_M = ops.rms_norm(
            x_NH.index_select(0, at_M), added_NH.index_select(0, at_M), self._norm
        )
        grad_n_MH = torch.empty_like(n_MH)
        losses = []
        for part in self._head_parts(len(n_MH)):
            logits = n_MH[part] @ self._head_VH.mT
            losses.append(ops.token_loss_(logits, given.targets_M[part], given.weights_M[part]))
            torch.mm(logits, self._head_VH, out=grad_n_MH[part])
            del logits
        weighted_M = torch.cat(losses).double() * given.weights_M
        seat_S1 = torch.arange(seats.count, device=x_NH.device).unsqueeze(1)
        own_SM = given.loss_seats_M.unsqueeze(0) == seat_S1
        seats.losses_S.add_(torch.where(own_SM, weighted_M, 0.0).sum(dim=1))
        grad_MH = ops.rms_norm_backward(grad_n_MH, x_MH, self._norm, scale_M, None)
        return torch.zeros_like(x_NH).index_add_(0, at_M, grad_MH)
