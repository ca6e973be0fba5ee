"""Which linear layers a model has, and which of them a list of targets means. Imports no torch.

The rule for quantization stands here too: every linear layer inside the blocks, nothing outside them
(embeddings, head), whatever the adapter targets; otherwise a sweep over targets would change the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.config.lora import ends_in, rank_of
from harness.config.schema import LoraConfig, LoraMethod
from harness.errors import RequestError, near_names

TARGET_SETS = ("all_linear", "attention", "mlp", "experts")
FUSED = {
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Projections that lie in one matrix, by its name."""


class AdaptedShape(NamedTuple):
    """What an adapter of rank r has of a layer: A [experts · r, inputs] and B [outputs, r · experts]."""

    inputs: int
    outputs: int
    experts: int = 1

    def params(self, rank: int) -> int:
        """Return r (d_in + d_out) for every expert (Hu et al. 2021, section 4.1)."""
        return rank * self.experts * (self.inputs + self.outputs)


class AdapterShape(NamedTuple):
    """What one adapter has of a layer: A [experts · rank, inputs], B [outputs, rank · experts],
    magnitudes."""

    rank: int
    inputs: int
    """Those that A sees: of the layer, or with QA-LoRA groups of them."""
    outputs: int
    experts: int = 1
    pooled: int = 1
    """Inputs of the layer that are added up to one that A sees."""
    has_magnitudes: bool = False
    """Whether the adapter has a trained norm for every output (DoRA)."""

    @property
    def params(self) -> int:
        """Trained elements."""
        own = AdaptedShape(self.inputs, self.outputs, self.experts).params(self.rank)
        return own + self.outputs * self.has_magnitudes


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear layer of a block: its full module name, and the dimensions in which it is stored."""

    name: str
    in_features: int
    out_features: int
    experts: int = 1
    """Experts whose matrices lie in it one below another; 1: it is a plain layer."""
    transposed: bool = False
    """Whether these matrices are [inputs, outputs]."""

    @property
    def adapted(self) -> AdaptedShape:
        """The dimensions that an adapter sees."""
        rows = self.out_features // self.experts
        inputs, outputs = (self.in_features, rows)[:: -1 if self.transposed else 1]
        return AdaptedShape(inputs, outputs, self.experts)


def in_block(name: str) -> bool:
    """Say whether a module lies in one of the model's repeated blocks: its path has a list index."""
    return any(part.isdigit() for part in name.split("."))


def block_name(name: str) -> str:
    """Return the name of the block that a module of it lies in: its path up to the first list index."""
    parts = name.split(".")
    first = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: first + 1])


def is_attention(name: str) -> bool:
    """Say whether a module of a block belongs to its attention; the others are its MLP."""
    return any("attn" in part or "attention" in part for part in name.split(".")[:-1])


def adapted_layers(lora: LoraConfig, linears: Sequence[LinearSpec]) -> list[LinearSpec]:
    """Return the layers that `lora` adapts, in the model's order.

    Full fine-tuning trains all of them, and what else the model has. Raises RequestError if a target or a
    pattern matches nothing, or if a layer's rank is above its smaller dimension.
    """
    if lora.trains_all:
        _check_trainable(linears)
        return list(linears)
    names: set[str] = set()
    for target in lora.target_modules:
        matched = {spec.name for spec in linears if _matches(target, spec.name)}
        if not matched:
            known = {spec.name.rsplit(".", 1)[-1] for spec in linears} | set(TARGET_SETS)
            raise RequestError(
                f"lora.target_modules: {target!r} matches no linear layer of this model, whose blocks "
                f"have {', '.join(sorted(known - set(TARGET_SETS)))}; sets are "
                f"{', '.join(TARGET_SETS)}{_part_of(target, known) or near_names(target, known)}"
            )
        names |= matched
    adapted = [spec for spec in linears if spec.name in names]
    _check_experts(lora, adapted)
    _check_patterns(lora, adapted)
    _check_pools(lora, adapted)
    _check_ranks(lora, adapted)
    return adapted


def adapter_shapes(lora: LoraConfig, linears: Sequence[LinearSpec]) -> dict[str, AdapterShape]:
    """Return what the adapter has of each layer that it adapts, in the model's order."""
    return {spec.name: _adapter_shape(lora, spec) for spec in adapted_layers(lora, linears)}


def _adapter_shape(lora: LoraConfig, spec: LinearSpec) -> AdapterShape:
    inputs, outputs, experts = spec.adapted
    pooled = lora.qalora_group_size if lora.method is LoraMethod.qalora else 1
    return AdapterShape(
        rank=rank_of(lora, spec.name),
        inputs=inputs // pooled,
        outputs=outputs,
        experts=experts,
        pooled=pooled,
        has_magnitudes=lora.method is LoraMethod.dora,
    )


def _check_patterns(lora: LoraConfig, adapted: Sequence[LinearSpec]) -> None:
    """Refuse patterns that no adapted layer, or only fused experts, can follow."""
    for key, patterns in (
        ("rank_pattern", lora.rank_pattern),
        ("alpha_pattern", lora.alpha_pattern),
    ):
        for pattern in patterns or {}:
            matched = [spec for spec in adapted if ends_in(pattern, spec.name)]
            if not matched:
                known = {spec.name.rsplit(".", 1)[-1] for spec in adapted}
                raise RequestError(
                    f"lora.{key}: {pattern!r} matches the end of no adapted layer's name; these are "
                    f"{', '.join(sorted(known))}{near_names(pattern, known)}"
                )
            if any(spec.experts > 1 for spec in matched):
                raise RequestError(
                    f"lora.{key}: {pattern!r} matches fused experts ({matched[0].name}), which PEFT adapts "
                    "as parameters, all with lora.rank"
                )


def _check_pools(lora: LoraConfig, adapted: Sequence[LinearSpec]) -> None:
    if lora.method is not LoraMethod.qalora:
        return
    size = lora.qalora_group_size
    for spec in adapted:
        if spec.in_features % size:
            raise RequestError(
                f"lora.qalora_group_size={size} must divide the inputs of every adapted layer, and "
                f"{spec.name} has {spec.in_features}"
            )


def _check_ranks(lora: LoraConfig, adapted: Sequence[LinearSpec]) -> None:
    """Refuse a rank above the smaller dimension of what is adapted, naming the layer with the least room."""

    def room(spec: LinearSpec) -> int:
        return min(spec.adapted.inputs, spec.adapted.outputs)

    too_small = [spec for spec in adapted if rank_of(lora, spec.name) > room(spec)]
    if not too_small:
        return
    spec = min(too_small, key=room)
    shape, limit, rank = spec.adapted, room(spec), rank_of(lora, spec.name)
    key = "rank_pattern" if any(ends_in(p, spec.name) for p in lora.rank_pattern or {}) else "rank"
    raise RequestError(
        f"lora.{key}={rank} is above the smallest target dimension {limit} "
        f"({spec.name}, {shape.inputs} -> {shape.outputs}); "
        f"use at most {limit} or leave that layer out of lora.target_modules"
    )


def _check_trainable(linears: Sequence[LinearSpec]) -> None:
    """Refuse a model with weights of which no gradient is computed here."""
    fused = next((spec for spec in linears if spec.experts > 1), None)
    if fused is not None:
        raise RequestError(
            f"lora=none trains all weights of a model, and those of fused experts ({fused.name}) are "
            "computed frozen; use an adapter (lora=all_linear)"
        )


def _part_of(target: str, known: set[str]) -> str:
    """Return `"; c_attn has it"` for a projection that lies with others in one matrix of the model."""
    fused = min((name for name in known if target in FUSED.get(name, ())), default=None)
    if fused is None:
        return ""
    return f"; {fused} has it, with {' and '.join(part for part in FUSED[fused] if part != target)}"


def _check_experts(lora: LoraConfig, adapted: Sequence[LinearSpec]) -> None:
    """Refuse what PEFT has for layers and not for the parameters that fused experts are."""
    fused = next((spec for spec in adapted if spec.experts > 1), None)
    if fused is None:
        return
    others = "or leave experts out of lora.target_modules (lora=attention does)"
    if lora.dropout > 0:
        raise RequestError(
            f"lora.dropout={lora.dropout} acts on the inputs of layers, and PEFT adapts fused experts "
            f"({fused.name}) as parameters, whose inputs it does not see; use lora.dropout=0, {others}"
        )
    if lora.method is not LoraMethod.lora:
        raise RequestError(
            f"lora.method={lora.method.value} is for layers, and PEFT adapts fused experts ({fused.name}) as "
            f"parameters; use lora.method=lora, {others}"
        )
    if lora.init.from_dense:
        raise RequestError(
            f"lora.init={lora.init.value} is for layers, and PEFT adapts fused experts ({fused.name}) as "
            f"parameters; use lora.init=default or gaussian, {others}"
        )


def _matches(target: str, name: str) -> bool:
    match target:
        case "all_linear":
            return True
        case "attention":
            return is_attention(name)
        case "mlp":
            return not is_attention(name)
        case "experts":
            return "experts" in name.split(".")[:-1]
        case _:
            return name == target or name.endswith(f".{target}")


def shortest_names(adapted: Sequence[LinearSpec], linears: Sequence[LinearSpec]) -> list[str]:
    """Return the shortest list of name endings that means exactly `adapted`, for PEFT's own config."""
    wanted = {spec.name for spec in adapted}
    for depth in (1, 2, 3):
        endings = {".".join(name.split(".")[-depth:]) for name in wanted}
        selected = {s.name for s in linears if any(_matches(ending, s.name) for ending in endings)}
        if selected == wanted and not endings & set(TARGET_SETS):
            return sorted(endings)
    return sorted(wanted)
