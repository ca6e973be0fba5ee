"""What a pass of a cohort keeps and needs: the engine's own pass, run on the meta device.

A pass is traced with a few blocks, and again with one more of each kind: what a further block adds is
taken times the number of blocks. Blocks are of one kind if they compute the same, adapt the same layers
and stand on the same side of the first adapted block, before which autograd keeps nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from harness.base.storage import TORCH_DTYPES
from harness.base.targets import adapter_shapes
from harness.config.lora import scaling_of
from harness.config.schema import LoraConfig, OptimConfig
from harness.data.rows import Batch
from harness.engine.adapter import Adapter, ParameterLayout
from harness.engine.micro_step import Work, adapter_rows_of, packed_gradients
from harness.engine.neftune import Noise
from harness.engine.whole_model import WholeModel
from harness.errors import RequestError, first_line
from harness.plan.attention import planned_attention
from harness.plan.model import META, PlannedModel
from harness.plan.prediction import BatchSize
from harness.plan.tracing import LiveBytes, SavedOnMeta


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What of a run's configuration a pass depends on."""

    lora: LoraConfig
    optim: OptimConfig
    batch: BatchSize


@dataclass(frozen=True, slots=True)
class PassBytes:
    """What one pass keeps from forward to backward, and its peak of live bytes, both without static parts."""

    saved: int
    peak: int


def pass_bytes(model: PlannedModel, runs: Sequence[PlannedRun], device: str) -> PassBytes:
    """Return what one pass of `runs` side by side keeps and needs on `device` ("cpu" or "cuda")."""
    kinds = _block_kinds(model, runs)
    first, further = chosen_blocks(kinds)
    if len(first) + sum(len(blocks) for blocks, _ in further) >= len(kinds):
        return traced_pass(model, runs, device, range(len(kinds)))
    base = total = traced_pass(model, runs, device, first)
    for blocks, times in further:
        longer = traced_pass(model, runs, device, blocks)
        total = PassBytes(
            total.saved + times * (longer.saved - base.saved),
            total.peak + times * (longer.peak - base.peak),
        )
    return total


def chosen_blocks(kinds: Sequence[Hashable]) -> tuple[list[int], list[tuple[list[int], int]]]:
    """Return one block of each kind, the last one among them; and these with one more of a kind, and how
    many more of that kind there are."""
    members: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        members.setdefault(kind, []).append(index)
    last = kinds[-1]
    first = sorted(indices[-1] if kind == last else indices[0] for kind, indices in members.items())
    further = []
    for indices in members.values():
        if len(indices) > 1:
            another = next(index for index in indices if index not in first)
            further.append((sorted([*first, another]), len(indices) - 1))
    return first, further


def _block_kinds(model: PlannedModel, runs: Sequence[PlannedRun]) -> list[Hashable]:
    adapted: list[list[Hashable]] = [[] for _ in range(model.num_blocks)]
    for number, lora in enumerate(_distinct_targets(runs)):
        for name, shape in adapter_shapes(lora, model.linears).items():
            block = model.blocks.block_of(name)
            inside = name[len(model.blocks.name) :].split(".", 2)[2]
            adapted[block].append((number, inside, shape))
    first = next(index for index, layers in enumerate(adapted) if layers)
    return [
        (signature, tuple(layers), (index > first) - (index < first))
        for index, (signature, layers) in enumerate(
            zip(model.blocks.signatures, adapted, strict=True)
        )
    ]


def _distinct_targets(runs: Sequence[PlannedRun]) -> list[LoraConfig]:
    """Return one adapter of each set of shapes; ranks that all layers share need no block of their own."""
    loras = [run.lora for run in runs]
    return list({repr((x.target_modules, x.method, x.rank_pattern)): x for x in loras}.values())


def traced_pass(
    model: PlannedModel, runs: Sequence[PlannedRun], device: str, blocks: Sequence[int]
) -> PassBytes:
    """Run the pass with these blocks alone.

    Raises RequestError for a model whose forward pass depends on what is in its tensors.
    """
    plan = model.shared.plan
    model.shared.recompute_activations(  # in all blocks
        any(run.optim.gradient_checkpointing for run in runs)
    )
    work: list[Work] = []
    try:
        with model.only_blocks(blocks):
            work = _work(model, runs, set(blocks))
            for item in work:
                plan.add(item.adapter)
            _make_lasting_tensors(model, work)
            saved = SavedOnMeta([*model.model.parameters(), *model.model.buffers()])
            live = LiveBytes(device)
            with planned_attention(device), live, saved.counting():
                packed_gradients(model.shared, work)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise RequestError(
            f"a pass of {model.name} cannot be planned: {first_line(error)} (a model "
            "whose pass depends on its data, or that reads weights around its layers, can only be measured)"
        ) from error
    finally:
        for item in work:
            plan.remove(item.adapter.name)
            if isinstance(item.adapter, WholeModel):
                item.adapter.release()
    return PassBytes(saved.total, live.peak)


def _work(model: PlannedModel, runs: Sequence[PlannedRun], blocks: set[int]) -> list[Work]:
    """Return the runs' shares of a pass in the order in which `packed_gradients` stacks them."""
    layouts: dict[Hashable, ParameterLayout] = {}
    work = []
    for number, run in enumerate(runs):
        batch = run.batch
        work.append(
            Work(
                adapter=_adapter(model, f"run{number}", run.lora, blocks, layouts),
                batch=Batch(
                    input_ids_BT=_tokens(batch),
                    targets_BT=_tokens(batch),
                    segments_BT=_tokens(batch) if batch.packed else None,
                    loss_positions_N=torch.empty(batch.loss_tokens, dtype=torch.int64, device=META),
                ),
                loss_tokens=batch.loss_tokens,
                dropout_key=None if run.lora.dropout == 0 else 0,
                recompute=run.optim.gradient_checkpointing,
                noise=None
                if run.optim.neftune_alpha is None
                else Noise(0, run.optim.neftune_alpha),
                offload=run.optim.offload_activations,
            )
        )
    return sorted(
        work,
        key=lambda w: (w.adapter.layout.rank, w.adapter.layout.size, w.batch.input_ids_BT.shape[0]),
    )


def _tokens(batch: BatchSize) -> torch.Tensor:
    return torch.empty(batch.rows, batch.length, dtype=torch.int64, device=META)


def _adapter(
    model: PlannedModel,
    name: str,
    lora: LoraConfig,
    blocks: set[int],
    layouts: dict[Hashable, ParameterLayout],
) -> Adapter:
    """Return an adapter of the layers in `blocks`; those of one rank and the same layers share a layout.

    In full fine-tuning all of the model, which consists of these blocks.
    """
    if lora.trains_all:
        return WholeModel.of(name, model.model, model.shared.plan)
    adapted = adapter_shapes(lora, model.linears)
    shapes = {
        index: (spec.name, shape)
        for index, spec in enumerate(model.linears)
        if (shape := adapted.get(spec.name)) is not None
        and model.blocks.block_of(spec.name) in blocks
    }
    wholes = model.shared.expect_wholes(lora)
    key = tuple(shapes.items()), tuple(wholes)
    if key not in layouts:
        layouts[key] = ParameterLayout(
            {index: shape for index, (_, shape) in shapes.items()},
            {part: shape for part, (_, shape) in wholes.items()},
        )
    return Adapter(
        name=name,
        layout=layouts[key],
        flat_P=torch.empty(layouts[key].size, device=META),
        parameters={},
        scalings={index: scaling_of(lora, own) for index, (own, _) in shapes.items()},
        dropout=lora.dropout,
        compute_dtype=TORCH_DTYPES[lora.compute_dtype],
    )


def _make_lasting_tensors(model: PlannedModel, work: Sequence[Work]) -> None:
    """Let the gradients and the stacked copies be there before the pass, as they are in every step but
    the first: the planner counts them apart."""
    plan = model.shared.plan
    with plan.rows(adapter_rows_of(work)):
        for group in plan.present:
            group.finished_gradients()
        for layer in {layer for item in work for layer in item.adapter.layout.layers}:
            model.layers[layer].expect(plan.groups(layer))
