"""The arithmetic of a prediction, line by line, each formula with its source."""

import math
from collections.abc import Iterator, Sequence

from harness.base.storage import DOUBLE_QUANT_BLOCK, Storage
from harness.base.targets import AdapterShape, LinearSpec, adapter_shapes
from harness.config.schema import RunConfig
from harness.plan.prediction import BatchSize, Prediction
from harness.records.metrics import format_bytes

BYTES_OF_FULL_FINE_TUNING = 16
"""Bytes a parameter: 16-bit weight and gradient, 32-bit master copy and Adam's two moments."""
BYTES_WITHOUT_MASTER = 12
"""The same without the master copy: 780 GB for 65B parameters, the QLoRA paper's figure."""
_GB = 1e9


def full_fine_tuning_bytes(params: float) -> float:
    """Return bytes of weights, gradients and Adam's state (Rajbhandari et al. 2020, arXiv 1910.02054)."""
    return BYTES_OF_FULL_FINE_TUNING * params


def constant_bits(storage: Storage) -> float:
    """Return bits a weight of the constants of blocks: 32/B each, or 8/B + 32/(256 B) (QLoRA, section 3)."""
    block_size = storage.quant.block_size
    each = 32 / block_size
    if storage.quant.double_quant:
        each = 8 / block_size + 32 / (block_size * DOUBLE_QUANT_BLOCK)
    return storage.constants_per_block * each


def saved_by_double_quantization(weights: int, block_size: int) -> float:
    """Return the bytes that double quantization saves on so many weights."""
    plain = 32 / block_size
    doubled = 8 / block_size + 32 / (block_size * DOUBLE_QUANT_BLOCK)
    return weights * (plain - doubled) / 8


def one_square_matrix_params(params: float, rank: int) -> float:
    """Return 2 r sqrt(N): a popular table's adapter size, of a model that is one square matrix."""
    return 2 * rank * math.sqrt(params)


def explanation(
    prediction: Prediction,
    config: RunConfig,
    storage: Storage,
    linears: Sequence[LinearSpec],
    batch: BatchSize,
) -> str:
    """Return the arithmetic of one run, for people who want to check it."""
    sections = (
        _alternatives(prediction),
        _base(prediction, storage, linears),
        _trained(prediction, config, linears),
        _training(prediction, config, batch),
        _toy(prediction, config),
    )
    told = (lines for section in sections if (lines := list(section)))
    return "\n".join(line for lines in told for line in (*lines, ""))


def _alternatives(prediction: Prediction) -> Iterator[str]:
    params = prediction.logical_params
    yield f"The alternatives, for N = {params:,} parameters (GB = 10^9 bytes), before activations"
    full, without = full_fine_tuning_bytes(params) / _GB, BYTES_WITHOUT_MASTER * params / _GB
    trained = 16 * prediction.trainable_params / _GB
    yield (
        f"  full fine-tuning  16 bytes x N = {full:,.2f} GB   weights 2, gradients 2, master copy 4, "
        "Adam 4 + 4"
    )
    yield f"                    12 bytes x N = {without:,.2f} GB   without the master copy"
    if prediction.trainable_params != params:
        yield (
            f"  LoRA              2 bytes x N + 16 bytes x {prediction.trainable_params:,} = "
            f"{2 * params / _GB + trained:,.2f} GB   the frozen weights alone are {2 * params / _GB:,.2f} GB"
        )
    beside = "adapter, gradients, optimizer"
    if prediction.trainable_params == params:
        beside = "gradients, optimizer, and of 16-bit weights a float32 copy"
    stored = prediction.parts["base"] + prediction.parts["quant_constants"]
    yield (
        f"  this one          {stored / _GB:,.3f} GB + {(prediction.static_bytes - stored) / _GB:,.3f} GB = "
        f"{prediction.static_bytes / _GB:,.3f} GB   base as stored; {beside}"
    )
    yield (
        f"  Rajbhandari et al. 2020 (arXiv 1910.02054), section 3.1; 10B parameters: "
        f"{full_fine_tuning_bytes(10e9) / _GB:.0f} GB. Dettmers et al. 2023 (arXiv 2305.14314)."
    )


def _base(prediction: Prediction, storage: Storage, linears: Sequence[LinearSpec]) -> Iterator[str]:
    weights = sum(spec.in_features * spec.out_features for spec in linears)
    others = [module for module in prediction.modules if module.kind != "block linear"]
    constants = storage.constants_per_block
    yield f"The base, {storage.label}"
    yield f"  linear layers of the blocks: {len(linears)}, {weights:,} weights"
    if constants == 0:
        yield f"  {prediction.bits_per_param:.3f} bits a weight"
    else:
        block, double_quant = storage.quant.block_size, storage.quant.double_quant
        bits = f"32/{block}"
        if double_quant:
            bits = f"8/{block} + 32/({block} x {DOUBLE_QUANT_BLOCK})"
        if constants > 1:
            bits = f"{constants} x ({bits})"
        yield (
            f"  {storage.bits} + {bits} = {storage.bits + constant_bits(storage):.3f} bits a weight, "
            f"{prediction.bits_per_param:.3f} with tables and incomplete blocks   (QLoRA, section 3)"
        )
        saved = saved_by_double_quantization(weights, block) / _GB
        verb = "saves" if double_quant else "would save"
        yield (
            f"  double quantization {verb} {constants * (24 - 32 / DOUBLE_QUANT_BLOCK) / block:.3f} bits a "
            f"weight = {constants * saved:.3f} GB"
        )
    stay = sum(module.weight_bytes + module.constant_bytes for module in others)
    yield f"  not quantized (embeddings, head, norms, biases, buffers) and tables: {format_bytes(stay)}"


def _trained(
    prediction: Prediction, config: RunConfig, linears: Sequence[LinearSpec]
) -> Iterator[str]:
    if config.lora.trains_all:
        yield from _whole(prediction, config)
    else:
        yield from _adapter(prediction, config, linears)


def _whole(prediction: Prediction, config: RunConfig) -> Iterator[str]:
    params, parts = prediction.trainable_params, prediction.parts
    yield "Full fine-tuning: every parameter is trained, of a copy of the weights that no other run shares"
    yield (
        f"  {params:,} parameters: weights in {config.quant.compute_dtype.value} "
        f"{format_bytes(parts['base'])}, gradients x 4 bytes = {format_bytes(parts['gradient'])} (float32)"
    )
    if parts["adapter"]:
        copy = format_bytes(parts["adapter"])
        yield f"  float32 copy that the optimizer moves, x 4 bytes = {copy}; rounded anew for each pass"


def _adapter(
    prediction: Prediction, config: RunConfig, linears: Sequence[LinearSpec]
) -> Iterator[str]:
    rank = config.lora.rank
    yield f"The adapter, rank {rank}: r (d_in + d_out) a layer   (Hu et al. 2021, arXiv 2106.09685)"
    groups: dict[tuple[str, AdapterShape], int] = {}
    for name, shape in adapter_shapes(config.lora, linears).items():
        key = name.rsplit(".", 1)[-1], shape
        groups[key] = groups.get(key, 0) + shape.experts
    width, remaining = max(len(name) for name, _ in groups), prediction.trainable_params
    for (name, shape), count in groups.items():
        each = f"{shape.rank} x ({shape.inputs} + {shape.outputs})"
        total = count * shape.rank * (shape.inputs + shape.outputs)
        if shape.has_magnitudes:
            each, total = f"({each} + {shape.outputs})", total + count * shape.outputs
        remaining -= total
        yield f"  {name:<{width}}  {count} x {each} = {total:,}"
    if config.lora.train_also:
        yield f"  trained whole: {', '.join(config.lora.train_also)} = {remaining:,}"
    size = format_bytes(prediction.parts["adapter"])
    yield f"  {prediction.trainable_params:,} parameters x 4 bytes = {size}, gradients as much (float32)"


def _training(prediction: Prediction, config: RunConfig, batch: BatchSize) -> Iterator[str]:
    yield "Training"
    state = prediction.parts["optimizer"]
    each = state / prediction.trainable_params
    yield f"  {config.optim.name.value}: {format_bytes(state)}, {each:.2f} bytes a parameter"
    kept = (
        "inputs of blocks" if config.optim.gradient_checkpointing else "everything backward needs"
    )
    if config.optim.offload_activations:
        kept = "inputs of blocks are on the host"
    yield (
        f"  activations of {batch.rows} x {batch.length} positions, {batch.loss_tokens} of them with loss: "
        f"{format_bytes(prediction.parts['activation'])} ({kept})"
    )
    yield "    traced: the engine's own forward pass on tensors without memory, over a few blocks"
    if prediction.device == "cuda":
        yield (
            f"  for a moment: {format_bytes(prediction.transient_bytes)} (the largest excess of live tensors "
            "over those kept: decoded weights, logits and their gradient, a block's own)"
        )


def _toy(prediction: Prediction, config: RunConfig) -> Iterator[str]:
    if config.lora.trains_all:
        return
    params, rank = prediction.logical_params, config.lora.rank
    toy = one_square_matrix_params(params, rank)
    yield "A popular table, as a toy only"
    yield (
        f"  2 r sqrt(N) = 2 x {rank} x sqrt({params:,}) = {toy:,.0f}: the model as one square matrix. No "
        f"real model is one; the adapter above has {prediction.trainable_params:,}."
    )
