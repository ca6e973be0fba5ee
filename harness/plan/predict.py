"""From a model, a configuration and a micro-batch to the memory of training, by parts.

Static parts are closed formulas over the model's dimensions, exact to the byte. Activations and the peak of
a pass come from the engine's own forward and backward, run on the meta device (`harness.plan.passes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from harness.base.targets import AdapterShape, LinearSpec, adapter_shapes
from harness.config.resources import Shard
from harness.config.schema import FloatType, LoraConfig, OptimizerName, RunConfig
from harness.errors import RequestError
from harness.plan.base_bytes import base_bytes, gathered_bytes
from harness.plan.captured import captured_bytes, plans_captured
from harness.plan.model import PlannedModel
from harness.plan.passes import PassBytes, PlannedRun, pass_bytes
from harness.plan.prediction import SHARED_PARTS, STATIC_PARTS, BatchSize, Prediction
from harness.records.metrics import MEMORY_PARTS

_FLOAT_BYTES = 4
"""Adapters, their gradients and their optimizers' states are float32 on every base."""
_CUBLAS_BYTES = 2 * 32 * 2**20
"""cuBLAS keeps a workspace for the thread of the forward pass and one for autograd's: 32 MiB each from Hopper
on, 8.1 MiB before (aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize)."""


def predict(
    model: PlannedModel,
    config: RunConfig,
    batch: BatchSize,
    *,
    cohort: int = 1,
    device: str,
) -> Prediction:
    """Return the memory of `cohort` runs of this configuration that share every pass.

    `batch` is the micro-batch of one run; `device` is "cpu" or "cuda". Raises RequestError where the
    adapter does not fit the model.
    """
    assert cohort >= 1, cohort
    assert device in ("cpu", "cuda"), device
    if cohort > 1 and config.lora.trains_alone:
        raise RequestError(
            f"{cohort} runs side by side: a run that trains the model itself, or a part of it, trains "
            "alone; use plan.cohort=1"
        )
    model.use(config.quant)
    shared = config.resources.shard is Shard.fsdp
    processes = config.resources.data_parallel if shared else 1
    base = base_bytes(model.outline, model.storage, processes)
    if config.lora.trains_all:
        sizes = [parameter.numel() for parameter in model.model.parameters()]
    else:
        wholes = [rows * n for _, (rows, n) in model.shared.expect_wholes(config.lora).values()]
        shapes = adapter_shapes(config.lora, model.linears).values()
        sizes = [*wholes, *adapter_sizes(list(shapes))]
    params = sum(sizes)
    state = optimizer_bytes(config.optim.name, sizes)
    working = cohort * _working_bytes(config, batch, params, cohort)
    if plans_captured(model, config, device):
        recompute = config.optim.gradient_checkpointing
        captured = captured_bytes(model, config.lora, batch, cohort, recompute=recompute)
        of_pass = PassBytes(saved=captured.peak, peak=captured.peak)
        # Gradients and moments lie in the seats alone; the adapter lies there and in PEFT's tensors.
        best = cohort * _FLOAT_BYTES * params * config.eval.keep_best
        working = captured.seats - cohort * (_FLOAT_BYTES * params + state.total) + best
    else:
        run = PlannedRun(config.lora, config.optim, batch)
        of_pass = pass_bytes(model, [run] * cohort, device)
    parts = {
        "base": base.weight_bytes,
        "quant_constants": base.constant_bytes,
        "adapter": _FLOAT_BYTES * params * (not _trains_the_base(config)),
        "gradient": _FLOAT_BYTES * params,
        "optimizer": state.total,
        "activation": -(-of_pass.saved // cohort),
    }
    assert tuple(parts) == MEMORY_PARTS
    together = {
        part: value if part in SHARED_PARTS else cohort * value for part, value in parts.items()
    }
    together["activation"] = of_pass.saved
    paged = cohort * state.paged if device == "cuda" else 0
    static = sum(together[part] for part in STATIC_PARTS)
    library = _CUBLAS_BYTES if device == "cuda" else 0
    gathered = gathered_bytes(model.outline, model.storage) if shared else 0
    on_gpu = static - paged + working + library + of_pass.peak + gathered
    return Prediction(
        parts=parts,
        cohort_parts=together,
        transient_bytes=of_pass.peak - of_pass.saved + gathered,
        working_bytes=working,
        paged_bytes=paged,
        library_bytes=library,
        peak_bytes=on_gpu if device == "cuda" else sum(together.values()),
        device=device,
        modules=base.modules,
        trainable_params=params,
        logical_params=base.logical_params,
        bits_per_param=base.bits_per_param,
        cohort=cohort,
    )


def _trains_the_base(config: RunConfig) -> bool:
    """Say whether what is trained are the base's own float32 weights, without a copy beside them."""
    return config.lora.trains_all and config.quant.compute_dtype is FloatType.float32


def adapter_params(linears: Sequence[LinearSpec], lora: LoraConfig) -> int:
    """Return r (d_in + d_out) summed over the adapted layers (Hu et al. 2021, section 4.1), and
    magnitudes."""
    return sum(shape.params for shape in adapter_shapes(lora, linears).values())


def _working_bytes(config: RunConfig, batch: BatchSize, params: int, cohort: int) -> int:
    """Return one run's share of what lasts besides the parts.

    Adapters that are stacked are copied side by side (dropout draws its masks one by one, so that those with
    dropout are not); gradients of several micro-batches are added up in a tensor of their own; the best
    adapter so far is kept where the configuration asks for it.
    """
    stacked = cohort > 1 and config.lora.dropout == 0
    accumulated = batch.rows < config.optim.batch_size
    return _FLOAT_BYTES * params * (stacked + accumulated + config.eval.keep_best)


# One adapter's optimizer state, as `harness.training.optimizers` makes it --------------------------


_EIGHT_BIT_FROM = 4096
"""bitsandbytes keeps the state of smaller tensors in float32 (`min_8bit_size`)."""
_EIGHT_BIT_BLOCK = 256
_TABLES_BYTES = 2 * 256 * _FLOAT_BYTES
"""The dynamic tables of the first and the second moment, one pair per optimizer."""
_PAGED_FROM = 100_000
"""Elements below which a GPU's tensors are not paged (`get_state_buffer`)."""


@dataclass(frozen=True, slots=True)
class OptimizerBytes:
    """State of one adapter's optimizer."""

    total: int
    paged: int
    """The part in managed memory, where there is a GPU."""


def adapter_sizes(shapes: Sequence[AdapterShape]) -> list[int]:
    """Return the elements of A and B, and of DoRA's magnitudes, of each adapted layer."""
    sizes = [s.rank * s.experts * size for s in shapes for size in (s.inputs, s.outputs)]
    return sizes + [s.outputs for s in shapes if s.has_magnitudes]


def optimizer_bytes(name: OptimizerName, sizes: Sequence[int]) -> OptimizerBytes:
    """Return the state that the optimizer has for tensors of these sizes after its first step."""
    match name:
        case OptimizerName.adamw:
            # Two flat tensors (every A and every B, or matrices and vectors), each with two moments and a
            # step counter.
            return OptimizerBytes(2 * _FLOAT_BYTES * sum(sizes) + 2 * _FLOAT_BYTES, 0)
        case OptimizerName.adamw_8bit:
            return OptimizerBytes(_eight_bit(sizes), 0)
        case OptimizerName.paged_adamw_8bit:
            paged = sum(_paged(size, 1) for size in sizes)  # whose states are all of 8 bits
            return OptimizerBytes(_eight_bit(sizes), paged)
        case OptimizerName.paged_adamw_32bit:
            paged = sum(_paged(size, _FLOAT_BYTES) for size in sizes)
            return OptimizerBytes(2 * _FLOAT_BYTES * sum(sizes), paged)
        case _ as unreachable:
            assert_never(unreachable)


def _eight_bit(sizes: Sequence[int]) -> int:
    """Two moments of one byte and a float32 scale per block each; small tensors in float32."""
    large = [size for size in sizes if size >= _EIGHT_BIT_FROM]
    blocks = sum(-(-size // _EIGHT_BIT_BLOCK) for size in large)
    tables = _TABLES_BYTES if large else 0
    small = 2 * _FLOAT_BYTES * (sum(sizes) - sum(large))
    return 2 * sum(large) + 2 * _FLOAT_BYTES * blocks + tables + small


def _paged(size: int, element_bytes: int) -> int:
    return 2 * element_bytes * size if size >= _PAGED_FROM else 0
