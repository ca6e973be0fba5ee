"""An adapter added to the weights of its base: unrounded as they came, or rounded as it was trained on them.

Shape suffixes: P elements of an adapter, R rank, O outputs, I inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from harness.base.blocks import linear_modules, weight_and_bias
from harness.base.build import load_dense
from harness.base.layers import dense_weight
from harness.engine.adapter import Adapter, ParameterLayout
from harness.engine.reference.whole_modules import whole_module
from harness.engine.shared_base import SharedBase
from harness.engine.whole_model import WholeModel, as_in_file
from harness.errors import RequestError
from harness.request import SavedRun
from harness.training.launch import open_base


class Into(Enum):
    """Which weights an adapter is added to."""

    unrounded = "unrounded"
    """Those of the checkpoint."""
    rounded = "rounded"
    """Those that the adapter was trained on: decoded from the base's storage."""


@dataclass(slots=True)
class OpenedRun:
    """A run that has ended, its base in memory and its adapter on it."""

    saved: SavedRun
    shared: SharedBase
    adapter: Adapter
    start_P: torch.Tensor | None
    """The adapter before training, where it began with a part of the weights as they came."""


def open_run(saved: SavedRun) -> OpenedRun:
    """Load the base of a run and its adapter."""
    assert saved.directory is not None
    shared = open_base(saved.config, saved.source, saved.fingerprint)
    adapter = shared.attach(saved.config.lora, saved.config.seed)
    start_P = adapter.flat_P.clone() if saved.config.lora.init.from_dense else None
    shared.load(adapter, saved.directory.trained(saved.config.lora))
    return OpenedRun(saved, shared, adapter, start_P)


@torch.no_grad()
def merged_model(run: OpenedRun, into: Into) -> Any:
    """Return a dense transformers model with the adapter in its weights, in the 16-bit type it came in.

    A checkpoint of another type becomes bfloat16. Sums are made in float32 and rounded once. What full
    fine-tuning has trained takes the place of the checkpoint's weights.
    """
    if into is Into.rounded and any(spec.experts > 1 for spec in run.shared.base.linears):
        raise RequestError("--into rounded decodes linear layers, and this model has fused experts")
    model = load_dense(run.saved.source, run.saved.config.model)
    model.config.__dict__.pop("quantization_config", None)  # of an upload, which has been decoded
    stored = next(model.parameters()).dtype
    dtype = stored if stored in (torch.float16, torch.bfloat16) else torch.bfloat16
    if isinstance(run.adapter, WholeModel):
        trained = as_in_file(run.adapter, run.shared.model)
        for name, parameter in model.named_parameters():
            parameter.data = trained[name].to("cpu", dtype)
        return model.to(dtype).eval()
    changes = dict(_changes(run, into))
    for name, module in linear_modules(model):
        if into is Into.rounded:
            layer = run.shared.model.get_submodule(name)
            layer = getattr(layer, "base_layer", layer)
            weight_OI = dense_weight(layer, torch.float32).cpu()
        else:
            weight_OI = weight_and_bias(module)[0].float()
        change = changes.pop(name, None)
        if change is not None:
            weight_OI = change.applied(weight_OI)
        _overwrite(module, weight_OI.to(dtype))
    if changes:
        raise RequestError(
            f"the adapter of {run.saved.name} has no place in the model: {min(changes)}"
        )
    _put_wholes(model, run, dtype)
    return model.to(dtype).eval()


def _put_wholes(model: Any, run: OpenedRun, dtype: torch.dtype) -> None:
    """Put embeddings and head in their places that the run has trained itself; they are tied no longer."""
    layout, flat_KP = run.adapter.layout, run.adapter.flat_P.unsqueeze(0)
    if layout.wholes:
        model.config.tie_word_embeddings = False
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if head.weight is embeddings.weight:
            head.weight = torch.nn.Parameter(
                embeddings.weight.detach().clone(), requires_grad=False
            )
    for part in layout.wholes:
        _, module = whole_module(model, part)
        whole = layout.whole(flat_KP, part)[0].to(module.weight.device, dtype)
        module.weight = torch.nn.Parameter(whole.clone(), requires_grad=False)


@dataclass(frozen=True, slots=True)
class _Change:
    """What an adapter makes of one layer's weight."""

    added_OI: torch.Tensor
    magnitude_O: torch.Tensor | None
    """With DoRA, the norm that each row is brought to."""

    def applied(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return the changed weight, in float32."""
        changed_OI = weight_OI + self.added_OI.to(weight_OI.device)
        if self.magnitude_O is None:
            return changed_OI
        norm_O = torch.linalg.vector_norm(changed_OI, dim=1)
        return changed_OI * (self.magnitude_O.to(norm_O.device) / norm_O).unsqueeze(1)


def _changes(run: OpenedRun, into: Into) -> Iterator[tuple[str, _Change]]:
    """Yield what the adapter makes of each layer's weight [O, I]."""
    layout, flat_P = run.adapter.layout, run.adapter.flat_P
    for index, spec in enumerate(run.shared.base.linears):
        if index not in layout:
            continue
        if spec.experts > 1:
            raise RequestError(
                f"the adapter of {run.saved.name} adapts fused experts ({spec.name}), which are not merged "
                "here; --to adapter writes what PEFT loads and merges"
            )
        change_OI = _product(layout, flat_P, index)
        if into is Into.unrounded and run.start_P is not None:
            change_OI = change_OI - _product(layout, run.start_P, index)
        magnitude_O = None
        if layout.shape(index).has_magnitudes:
            magnitude_O = layout.magnitudes(flat_P.unsqueeze(0), index)[0].cpu()
        yield spec.name, _Change((run.adapter.scalings[index] * change_OI).cpu(), magnitude_O)


def _product(layout: ParameterLayout, flat_P: torch.Tensor, index: int) -> torch.Tensor:
    flat_KP, shape = flat_P.unsqueeze(0), layout.shape(index)
    a_RI = layout.a(flat_KP, index)[0].float()
    if shape.pooled > 1:  # QA-LoRA: a column for each input (`SharedBase.file_tensors`)
        a_RI = (a_RI * (shape.inputs / shape.pooled)).repeat_interleave(shape.pooled, dim=1)
    return layout.b(flat_KP, index)[0].float() @ a_RI


def _overwrite(module: Any, weight_OI: torch.Tensor) -> None:
    """Put a weight in the place of a layer's own; GPT-2's layers have theirs transposed."""
    linear = isinstance(module, torch.nn.Linear)
    module.weight.data = weight_OI if linear else weight_OI.T.contiguous()


def folder_bytes(directory: Path) -> int:
    """Return the bytes of the files of a folder."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
