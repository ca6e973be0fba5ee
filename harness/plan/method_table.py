"""What full fine-tuning, LoRA and QLoRA take of a model, beside the numbers of a known explanation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.base.storage import storage_of
from harness.config.schema import FloatType, QuantConfig, QuantFormat
from harness.plan.base_bytes import base_bytes
from harness.plan.explain import full_fine_tuning_bytes
from harness.plan.model import PlannedModel
from harness.plan.parameter_table import CountedModel

TEN_BILLION = "falcon3_10b"
"""The model of about 10B parameters that stands beside the explanation's."""
BYTES_OF_A_TRAINED_PARAMETER = 16
"""Of an adapter: parameter, gradient and Adam's two moments in float32."""
_GB = 1e9
_TEXT_PARAMS, _TEXT_LORA, _TEXT_QLORA = 10e9, 40e9, 12e9
"""What is said of 10B parameters, without a source, beside the 160 GB of full fine-tuning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodBytes:
    """Bytes of weights, gradients and Adam's state by method, before activations."""

    model: str
    params: int
    adapter_params: int
    full: float
    frozen_16_bit: int
    """The base in 16 bits, which LoRA leaves alone."""
    frozen_nf4: int
    """The base as QLoRA stores it: linear layers of the blocks in nf4_dq, the rest in 16 bits."""

    @property
    def trained(self) -> int:
        """Bytes of the adapter with its gradients and moments."""
        return BYTES_OF_A_TRAINED_PARAMETER * self.adapter_params

    def tree(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "model": self.model,
            "params": self.params,
            "adapter_params": self.adapter_params,
            "full_fine_tuning_bytes": self.full,
            "lora_bytes": self.frozen_16_bit + self.trained,
            "qlora_bytes": self.frozen_nf4 + self.trained,
        }


def method_bytes(planned: PlannedModel, counted: CountedModel, rank: int) -> MethodBytes | None:
    """Return what the methods take of a model; None where this rank is none of its adapters'."""
    adapter = counted.adapter_params(rank)
    if adapter is None:
        return None
    return MethodBytes(
        model=counted.name,
        params=counted.params,
        adapter_params=adapter,
        full=full_fine_tuning_bytes(counted.params),
        frozen_16_bit=_stored(planned, QuantConfig(format=QuantFormat.none)),
        frozen_nf4=_stored(planned, QuantConfig(format=QuantFormat.nf4, double_quant=True)),
    )


def _stored(planned: PlannedModel, quant: QuantConfig) -> int:
    quant.compute_dtype = FloatType.bfloat16
    base = base_bytes(planned.outline, storage_of(quant))
    return base.weight_bytes + base.constant_bytes


def method_rows(found: Sequence[MethodBytes]) -> list[list[str]]:
    """Return the cells of the table, in GB."""
    rows = [["model", "parameters N", "adapter P", "full", "LoRA", "QLoRA"]]
    for each in found:
        totals = (each.full, each.frozen_16_bit + each.trained, each.frozen_nf4 + each.trained)
        counts = (f"{each.params:,}", f"{each.adapter_params:,}")
        rows.append([each.model, *counts, *(f"{total / _GB:,.2f}" for total in totals)])
    return rows


def formulas(found: MethodBytes) -> Iterator[str]:
    """Yield the arithmetic of one model's line."""
    n, p, trained = found.params / _GB, found.adapter_params / _GB, found.trained / _GB
    yield (
        f"full   16 bytes x N = 16 x {n:.3f} = {found.full / _GB:.2f} GB: weights 2, gradients 2, master "
        "copy 4, Adam 4 + 4"
    )
    yield (
        f"LoRA   2 bytes x N + 16 bytes x P = {found.frozen_16_bit / _GB:.2f} + 16 x {p:.4f} = "
        f"{(found.frozen_16_bit + found.trained) / _GB:.2f} GB: frozen weights have no gradients; of the"
    )
    yield "       adapter, in float32, itself 4, gradients 4, Adam 4 + 4"
    yield (
        f"QLoRA  N as stored + 16 bytes x P = {found.frozen_nf4 / _GB:.2f} + {trained:.2f} = "
        f"{(found.frozen_nf4 + found.trained) / _GB:.2f} GB: 4.127 bits a weight in the blocks, 16 elsewhere"
    )


def text_of_ten_billion() -> list[str]:
    """Say which arithmetic gives an explanation's 160, 40 and 12 GB for 10B parameters, and what does not."""
    n, each = _TEXT_PARAMS, BYTES_OF_A_TRAINED_PARAMETER
    weights, packed = 2 * n, 4.127 / 8 * n
    over, over_packed = _TEXT_LORA - weights, _TEXT_QLORA - packed
    adapter, share = over / each / _GB, 100 * over / each / n
    return [
        "A toy: explanations of QLoRA have 160, 40 and 12 GB for 10B parameters, without saying how.",
        "  160 GB = 16 bytes x N, as above: 20 of weights, 20 of gradients, 120 of optimizer",
        f"   40 GB = 4 bytes x N = {weights / _GB:.0f} of weights + {over / _GB:.0f}: as much as gradients "
        "of all N, of which LoRA has none;",
        f"           an adapter of so much would have {adapter:.2f}B parameters, {share:.1f} % of the model",
        f"   12 GB = {packed / _GB:.2f} of NF4 weights (4.127 bits each) + {over_packed / _GB:.2f}: an "
        f"adapter of {over_packed / each / _GB:.2f}B parameters, or",
        "           activations, which depend on the batch and are in none of these numbers",
    ]
