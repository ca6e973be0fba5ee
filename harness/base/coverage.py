"""How much of the blocks' weights is packed, and how much adapted. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.base.targets import TARGET_SETS, LinearSpec, adapted_layers
from harness.config.schema import QuantFormat, RunConfig
from harness.errors import RequestError

_NOTED, _REFUSED = 0.99, 0.90
"""Shares of the blocks' weights below which what is left out is named, and has to be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of the weights of the blocks (matrices; norms and biases are no part of them)."""

    packed: float
    """In layers that are stored in the quantization's format."""
    adapted: float
    """In layers that the adapter changes; all of them in full fine-tuning."""


def coverage(
    config: RunConfig, linears: Sequence[LinearSpec], uncovered: Mapping[str, int]
) -> Coverage:
    """Return the shares for a configuration; `uncovered` has the matrices that lie in no linear layer."""
    packed = _size(linears)
    total = packed + sum(uncovered.values())
    adapted = _size(adapted_layers(config.lora, linears))
    return Coverage(
        packed=packed / total, adapted=1.0 if config.lora.trains_all else adapted / total
    )


def check_coverage(
    config: RunConfig, linears: Sequence[LinearSpec], uncovered: Mapping[str, int]
) -> None:
    """Refuse what would leave more than a tenth of the blocks out without having been asked to.

    Raises RequestError where weights would be neither packed nor adapted, though the configuration says all.
    """
    left_out = _left_out(config, linears, uncovered, below=_REFUSED)
    if left_out is not None and not config.quant.skip_experts:
        raise RequestError(
            f"{left_out}; with quant.skip_experts=true they stay as they are, in the compute type"
        )


def coverage_notes(
    config: RunConfig, linears: Sequence[LinearSpec], uncovered: Mapping[str, int]
) -> list[str]:
    """Return what is left out, by name and size, where it is more than a hundredth."""
    left_out = _left_out(config, linears, uncovered, below=_NOTED)
    return [] if left_out is None else [left_out]


def _left_out(
    config: RunConfig, linears: Sequence[LinearSpec], uncovered: Mapping[str, int], *, below: float
) -> str | None:
    """Say what neither the storage nor the adapter reaches, if one of them is to reach all of a block and the
    packed share is `below` that."""
    whole = config.quant.format is not QuantFormat.none
    whole = whole or bool(
        {"all_linear", "mlp"} & set(config.lora.target_modules) & set(TARGET_SETS)
    )
    if not uncovered or not whole or config.lora.trains_all:
        return None
    packed = coverage(config, linears, uncovered).packed
    if packed >= below:
        return None
    largest = sorted(uncovered.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} ({size:,})" for name, size in largest[:2])
    more = f" and {len(largest) - 2} more" if len(largest) > 2 else ""
    return (
        f"{1 - packed:.0%} of the blocks' weights lie in no linear layer and are neither quantized nor "
        f"adapted: {named}{more}"
    )


def _size(linears: Sequence[LinearSpec]) -> int:
    return sum(spec.in_features * spec.out_features for spec in linears)
