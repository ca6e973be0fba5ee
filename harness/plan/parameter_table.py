"""Adapter sizes over ranks and models: real counts, LoRA's own table, and the popular one as a toy.

Fused projections are understood as what they are made of: the q of a fused c_attn is the part of it that
yields queries, adapted by an A and a B of its own, as the LoRA paper counts GPT-3's W_q.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from harness.base.targets import FUSED, AdaptedShape, LinearSpec, adapted_layers
from harness.config.schema import LoraConfig
from harness.errors import RequestError
from harness.plan.explain import one_square_matrix_params
from harness.records.metrics import format_bytes

RANKS = (1, 2, 8, 16, 64, 512)
SHAPES = ("gemma_2b", "llama2_7b", "llama2_13b", "llama2_70b", "falcon_180b")
GPT3, GPT3_RANKS = "gpt3_175b", (1, 2, 4, 8, 64)
"""LoRA, table 6: W_q and W_v of GPT-3 at these ranks (Hu et al. 2021, arXiv 2106.09685)."""
TOY_SIZES = {"7B": 7e9, "13B": 13e9, "70B": 70e9, "180B": 180e9}
TOY_RANKS = (1, 2, 8, 16, 512)
_FLOAT_BYTES = 4

_CALLED_OTHERWISE = {
    "o_proj": (
        "attn.c_proj",
        "attention.dense",
        "self_attention.dense",
        "self_attn.dense",
        "out_proj",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """A model of which adapters are counted."""

    name: str
    params: int
    """All of its parameters."""
    shapes: tuple[AdaptedShape, ...]
    """The matrices that the adapter adapts."""
    most: int
    """The largest rank that is less than full: the smallest dimension of these."""

    def adapter_params(self, rank: int) -> int | None:
        """Return the adapter's parameters; None above the smallest dimension, where it is no adapter."""
        return sum(shape.params(rank) for shape in self.shapes) if rank <= self.most else None


def counted_model(
    name: str, config: Any, params: int, linears: Sequence[LinearSpec], targets: Sequence[str]
) -> CountedModel:
    """Return a model with the matrices that `targets` mean. Raises RequestError where one means nothing."""
    found: dict[tuple[str, str], AdaptedShape] = {}
    for target in targets:
        found |= _meant(target, config, linears)
    shapes = tuple(found.values())
    most = min(min(shape.inputs, shape.outputs) for shape in shapes)
    return CountedModel(name=name, params=params, shapes=shapes, most=most)


def _meant(
    target: str, config: Any, linears: Sequence[LinearSpec]
) -> dict[tuple[str, str], AdaptedShape]:
    """Return the matrices that a target means, by the layer and the part of it."""
    for spelled in (target, *_CALLED_OTHERWISE.get(target, ())):
        with suppress(RequestError):
            return _plain(spelled, linears)
    parts = {
        (spec.name, target): AdaptedShape(spec.in_features, _outputs_of(target, spec, config))
        for spec in linears
        if target in FUSED.get(spec.name.rpartition(".")[2], ()) and spec.experts == 1
    }
    return parts or _plain(target, linears)


def _plain(target: str, linears: Sequence[LinearSpec]) -> dict[tuple[str, str], AdaptedShape]:
    lora = LoraConfig(rank=1, target_modules=[target])
    return {(spec.name, ""): spec.adapted for spec in adapted_layers(lora, linears)}


def _outputs_of(part: str, spec: LinearSpec, config: Any) -> int:
    """Return how many outputs of a fused projection are one part of it."""
    if part in ("gate_proj", "up_proj"):
        return spec.out_features // 2
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv = (spec.out_features - heads * size) // 2
    return heads * size if part == "q_proj" else kv


# As text -----------------------------------------------------------------------------------------


def table_rows(
    models: Sequence[CountedModel], ranks: Sequence[int]
) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield a heading and the cells of each table: parameters, share of the model, bytes in float32."""

    def cells(of: Any) -> list[list[str]]:
        rows = [["rank", *(model.name for model in models)]]
        for rank in ranks:
            counts = [(model, model.adapter_params(rank)) for model in models]
            row = ["—" if count is None else of(model, count) for model, count in counts]
            rows.append([str(rank), *row])
        return rows

    yield "Parameters", cells(lambda _, count: f"{count:,}")
    yield (
        "Share of the model's own parameters",
        cells(lambda model, count: f"{100 * count / model.params:.4f} %"),
    )
    yield "Bytes in float32", cells(lambda _, count: format_bytes(_FLOAT_BYTES * count))


def toy_rows() -> list[list[str]]:
    """Return the popular table: 2 r sqrt(N), as if a model were one square matrix."""
    rows = [["rank", *TOY_SIZES]]
    for rank in TOY_RANKS:
        counts = (one_square_matrix_params(size, rank) for size in TOY_SIZES.values())
        rows.append([str(rank), *(_short(count) for count in counts)])
    return rows


def _short(count: float) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def worked_example() -> list[str]:
    """Return a 3 x 3 matrix's update at ranks 1 and 2, number by number."""
    b, a = [[1, 2], [2, 0], [3, 1]], [[4, 5, 6], [1, 3, 0]]
    return [
        "A 3 x 3 matrix W has 9 numbers. LoRA leaves it alone and adds B A, here of rank 1:",
        *_product([row[:1] for row in b], a[:1]),
        f"  B has 3 numbers and A has 3: {AdaptedShape(3, 3).params(1)} in place of 9. With rank 2:",
        *_product(b, a),
        f"  {AdaptedShape(3, 3).params(2)} numbers, more than W has. d_in x d_out become r (d_in + d_out), "
        f"which pays where W is large:",
        f"  4096 x 4096 = {4096 * 4096:,} at rank 8 become {AdaptedShape(4096, 4096).params(8):,}",
    ]


def _product(b: Sequence[Sequence[int]], a: Sequence[Sequence[int]]) -> list[str]:
    """Return B A = (product), row by row."""
    rank = len(a)
    product = [[sum(row[k] * a[k][j] for k in range(rank)) for j in range(3)] for row in b]
    lines = []
    for n, row in enumerate(b):
        right = _row(a[n]) if n < rank else " " * len(_row(a[0]))
        signs = (" x ", " = ") if n == 0 else ("   ", "   ")
        lines.append(f"    {_row(row)}{signs[0]}{right}{signs[1]}{_row(product[n])}")
    return lines


def _row(values: Sequence[int]) -> str:
    return f"[{' '.join(f'{value:>2}' for value in values)}]"
